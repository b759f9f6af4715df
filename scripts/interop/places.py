"""Where commands run: a network namespace of this host, or one in the virtual machine. Same words for both."""

import base64
import os
import shlex
import socket
import subprocess
import time


class Failed(Exception):
    """A command that had to succeed did not."""


class NoMachine(Exception):
    """The virtual machine does not come up: nothing can be tried here."""


class Gone(Exception):
    """The virtual machine answers no more: nothing can be judged from here on."""


class Place:
    """Something with a shell. `prefix` is a shell in the network namespace that is meant."""

    def __init__(self, prefix=""):
        self.prefix = prefix

    def call(self, command, seconds):
        raise NotImplementedError

    def run(self, command, seconds=20):
        """Exit status and output (both streams) of a shell command; 124 or 137 when it took too long."""
        return self.call(f"{self.prefix} -c {shlex.quote(command)}" if self.prefix else command, seconds)

    def must(self, command, seconds=20):
        status, output = self.run(f"set -e; {command}", seconds)
        if status:
            raise Failed(f"{command}: {output.strip() or status}")
        return output.strip()

    def until(self, command, seconds=10):
        """Repeats a command until it succeeds; its last output is the complaint when it never does."""
        deadline = time.monotonic() + seconds
        while True:
            status, output = self.run(command)
            if status == 0:
                return output.strip()
            if time.monotonic() > deadline:
                raise Failed(f"{command}: {output.strip() or status}")
            time.sleep(0.05)


class Namespace(Place):
    def __init__(self, name):
        super().__init__(f"ip netns exec {name} sh")

    def call(self, command, seconds):
        done = subprocess.run(["timeout", "-s", "KILL", str(seconds), "sh", "-c", command], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout.decode(errors="replace")


class Guest(Place):
    """The virtual machine's own namespace, over the line protocol of `init`."""

    def __init__(self, line, prefix=""):
        super().__init__(prefix)
        self.line = line

    def inside(self, namespace):
        # Cheaper than ip; by path, because busybox would start its own shell.
        return Guest(self.line, f"busybox nsenter --net=/run/netns/{namespace} /sbin/dash")

    def call(self, command, seconds):
        try:
            self.line.settimeout(seconds + 30)
            self.line.sendall(b"%d %s\n" % (seconds, base64.b64encode(command.encode())))
            status, _, output = read_line(self.line).partition(b" ")
        except (OSError, Gone) as why:
            # An answer that comes yet would be taken for the next command's.
            self.line.close()
            raise Gone(f"no answer from the virtual machine to: {command}") from why
        return int(status), base64.b64decode(output).decode(errors="replace")


def read_line(line):
    answer = bytearray()
    while not answer.endswith(b"\n"):
        piece = line.recv(65536)
        if not piece:
            raise Gone("the virtual machine is gone")
        answer += piece
    return bytes(answer[:-1])


def boot(directory, cache, tap, mac):
    """Starts the virtual machine with its eth0 on `tap`, and waits until it takes commands."""
    program, environment, where = "qemu-system-x86_64", dict(os.environ), []
    private = f"{cache}/qemu/usr/bin/{program}"
    if os.path.exists(private):
        libraries = f"{cache}/qemu/usr/lib/x86_64-linux-gnu"
        program, environment["LD_LIBRARY_PATH"] = private, libraries
        where = ["-L", f"{cache}/qemu/usr/share/qemu", "-L", f"{cache}/qemu/usr/share/seabios"]
    path = f"{directory}/agent.sock"
    # A /dev/kvm may be there without a processor that virtualises, and then it breaks halfway.
    with open("/proc/cpuinfo") as cpus:
        flags = cpus.read().split()
    accelerator = "kvm:tcg" if {"vmx", "svm"} & set(flags) else "tcg"
    with open(f"{directory}/qemu.log", "wb") as log:
        machine = subprocess.Popen(
            [program, *where, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
             "-machine", f"accel={accelerator}", "-m", "512", "-smp", "1",
             "-kernel", f"{cache}/vmlinuz", "-initrd", f"{directory}/initramfs",
             "-append", "console=ttyS0 quiet panic=-1", "-serial", f"file:{directory}/console.log",
             "-chardev", f"socket,id=agent,path={path},server=on,wait=off",
             "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent",
             # No vnet header: no offloads, so that whole packets with whole checksums are on the wire.
             "-netdev", f"tap,id=underlay,ifname={tap},script=no,downscript=no,vnet_hdr=off",
             "-device", f"virtio-net-pci,netdev=underlay,mac={mac},romfile="],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(60)
    deadline = time.monotonic() + 60
    try:
        while line.connect_ex(path):
            if machine.poll() is not None or time.monotonic() > deadline:
                raise NoMachine("QEMU does not start")
            time.sleep(0.05)
        if read_line(line) != b"ready":
            raise NoMachine("the virtual machine does not come up")
    except (NoMachine, Gone, OSError) as why:
        machine.kill()
        machine.wait()
        with open(f"{directory}/qemu.log", errors="replace") as log:
            raise NoMachine(f"{why}: {log.read()[-500:].strip()}") from why
    return machine, Guest(line)
