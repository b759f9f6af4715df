//! Open files, from one process to another over a Unix socket (SCM_RIGHTS, unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors in one message: the kernel takes no more than 253 (SCM_MAX_FD).
const BATCH: usize = 128;

/// Sends descriptors, in order; the receiver has to know how many.
pub fn send(stream: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    for batch in descriptors.chunks(BATCH) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(batch)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Descriptors travel with at least one byte.
        sendmsg(
            stream,
            &[IoSlice::new(&[0])],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
    }
    Ok(())
}

/// Receives `count` descriptors, closed on exec. What came of an incomplete message is closed again.
pub fn receive(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut received = Vec::new();
    while received.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut data = [IoSliceMut::new(&mut byte)];
        let got = recvmsg(
            stream.as_fd(),
            &mut data,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let before = received.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                received.extend(descriptors);
            }
        }
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if received.len() == before || received.len() > count {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::{Read, Seek, Write},
    };

    #[test]
    fn descriptors_arrive_in_their_order_and_are_the_same_files() {
        let (near, far) = UnixStream::pair().unwrap();
        let path = std::env::temp_dir().join(format!("greyhound-fds-{}", std::process::id()));
        let files: Vec<File> = (0..300)
            .map(|n| {
                let mut options = File::options();
                let file = options.create(true).truncate(true).read(true).write(true);
                let mut file = file.open(path.with_extension(n.to_string())).unwrap();
                write!(file, "{n}").unwrap();
                file
            })
            .collect();
        let all: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send(&near, &all).unwrap();
        for (n, fd) in receive(&far, 300).unwrap().into_iter().enumerate() {
            let mut file = File::from(fd);
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, n.to_string());
            std::fs::remove_file(path.with_extension(text)).unwrap();
        }
        drop(near);
        let ended = receive(&far, 1).unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn bytes_without_descriptors_are_refused() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"x").unwrap();
        assert_eq!(
            receive(&far, 1).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
