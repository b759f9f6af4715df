"""Where commands run: a network namespace of this host, or one in the virtual machine. Same words for both."""

import os
import shlex
import signal
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
    """Something with a shell in a network namespace. Not in its mounts: /sys shows other devices than it has."""

    def run(self, command, seconds=20):
        """Exit status and output (both streams) of a shell command; 137 when it took too long."""
        raise NotImplementedError

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

    def link(self, device, before="true"):
        """A device's MTU and link address, after some other command."""
        words = self.must(f"{before}; ip -o link show {device}").split()
        return int(words[words.index("mtu") + 1]), words[words.index("link/ether") + 1] if "link/ether" in words else ""


class Namespace(Place):
    """One of this host's."""

    def __init__(self, name):
        # Not by ip: it would mount another /sys for each command.
        self.shell = ["nsenter", f"--net=/run/netns/{name}", "sh", "-c"]

    def run(self, command, seconds=20):
        with subprocess.Popen([*self.shell, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              start_new_session=True) as process:
            try:
                output, _ = process.communicate(timeout=seconds)
            except BaseException as why:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(why, subprocess.TimeoutExpired):
                    raise
                return 137, process.communicate()[0].decode(errors="replace")
        return process.returncode, output.decode(errors="replace")


class Guest(Place):
    """The virtual machine's own namespace, over the line protocol of `init`."""

    def __init__(self, line, shell=""):
        self.line, self.shell = line, shell
        self.show = False

    def inside(self, namespace):
        # By path: busybox would start its own shell.
        return Guest(self.line, f"busybox nsenter --net=/run/netns/{namespace} /sbin/dash -c ")

    def run(self, command, seconds=20):
        if self.shell:
            command = self.shell + shlex.quote(command)
        mark = os.urandom(8).hex()
        try:
            self.line.settimeout(seconds + 30)
            self.line.sendall(f"{seconds} {mark} {escaped(command)}\n".encode())
            output, _, status = read_until(self.line, mark.encode(), self.show).partition(mark.encode())
        except (OSError, Gone) as why:
            # An answer that comes yet would be taken for the next command's.
            self.line.close()
            raise Gone(f"no answer from the virtual machine to: {command}") from why
        return int(status), output.decode(errors="replace")


def escaped(command):
    """As one line, for %b of a shell's printf."""
    return "".join(f"\\0{ord(letter):03o}" if letter in "\\\n" else letter for letter in command)


def read_until(line, mark, show=False):
    """What comes up to the end of the line that has `mark`; `show` prints the lines before that one as they come."""
    answer, shown = bytearray(), 0
    while mark not in answer or not answer.endswith(b"\n"):
        piece = line.recv(65536)
        if not piece:
            raise Gone("the virtual machine is gone")
        answer += piece
        while show and b"\n" in answer[shown:]:
            end = answer.index(b"\n", shown) + 1
            if mark not in answer[shown:end]:
                print(answer[shown:end].decode(errors="replace"), end="", flush=True)
            shown = end
    return bytes(answer)


def card(tap, mac):
    """QEMU's words for a network card on `tap`."""
    # No vnet header: no offloads, so that whole packets with whole checksums are on the wire.
    return ["-netdev", f"tap,id=underlay,ifname={tap},script=no,downscript=no,vnet_hdr=off",
            "-device", f"virtio-net-pci,netdev=underlay,mac={mac},romfile="]


def boot(directory, cache, devices, memory=512):
    """Starts the virtual machine with these devices and so many MiB, and waits until it takes commands."""
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
             "-machine", f"accel={accelerator}", "-m", str(memory), "-smp", "1",
             "-kernel", f"{directory}/vmlinuz", "-initrd", f"{directory}/initramfs",
             "-append", "console=ttyS0 quiet panic=-1", "-serial", f"file:{directory}/console.log",
             "-chardev", f"socket,id=agent,path={path},server=on,wait=off",
             "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent", *devices],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(150)
    deadline = time.monotonic() + 150
    try:
        while line.connect_ex(path):
            if machine.poll() is not None or time.monotonic() > deadline:
                raise NoMachine("QEMU does not start")
            time.sleep(0.05)
        if read_until(line, b"ready") != b"ready\n":
            raise NoMachine("the virtual machine does not come up")
    except (NoMachine, Gone, OSError) as why:
        machine.kill()
        machine.wait()
        with open(f"{directory}/qemu.log", errors="replace") as log:
            raise NoMachine(f"{why}: {log.read()[-500:].strip()}") from why
    return machine, Guest(line)
