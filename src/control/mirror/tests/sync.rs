//! How dumps and notifications meet.

use std::time::{Duration, Instant};

use rtnetlink::packet_core::{
    DoneMessage, NLM_F_CREATE, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::{
    RouteNetlinkMessage as Message,
    neighbour::{NeighbourFlags, NeighbourState},
};

use super::{
    super::{Parts, sync::Sync},
    ETH, PORT, datagram, gateway, link, neighbour, order, route,
};

fn done(sequence: u32) -> Vec<u8> {
    let payload = NetlinkPayload::<Message>::Done(DoneMessage::default());
    let mut message = NetlinkMessage::new(Default::default(), payload);
    message.header.flags = NLM_F_MULTIPART;
    message.header.sequence_number = sequence;
    message.header.port_number = PORT;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Lets the mirror dump everything; `content` answers for each part.
fn dump_all(sync: &mut Sync, mut content: impl FnMut(Parts) -> Vec<Message>) -> Parts {
    let mut asked = Parts::NONE;
    while let Some(at) = sync.next_dump_at() {
        let part = sync.next_dump(at.max(Instant::now())).unwrap();
        let sequence = 100 + u32::from(part.name().len() as u8);
        sync.started(part, sequence);
        for message in content(part) {
            sync.datagram(&datagram(message, NLM_F_MULTIPART, sequence));
        }
        sync.datagram(&done(sequence));
        asked |= part;
    }
    asked
}

fn only(wanted: Parts, message: Message) -> impl FnMut(Parts) -> Vec<Message> {
    move |part| {
        if part == wanted {
            vec![message.clone()]
        } else {
            Vec::new()
        }
    }
}

#[test]
fn an_overrun_has_everything_read_anew() {
    let mut sync = Sync::new(PORT);
    let old = Message::NewRoute(route("10.1.0.0/16", "10.0.0.1", 0));
    assert_eq!(dump_all(&mut sync, only(Parts::ROUTES4, old)), Parts::ALL);
    assert!(sync.in_sync());
    sync.drained();
    sync.take_changed();

    sync.overrun();
    assert!(!sync.in_sync());
    assert_eq!(
        sync.next_dump_at(),
        None,
        "not before what waits is received"
    );
    sync.drained();
    assert_eq!(sync.next_dump(Instant::now()), None, "not before a pause");
    assert_eq!(
        gateway(&sync.state, "10.1.0.1").as_deref(),
        Some("10.0.0.1"),
        "old is better than none"
    );
    let new = Message::NewRoute(route("10.1.0.0/16", "10.0.0.2", 0));
    assert_eq!(dump_all(&mut sync, only(Parts::ROUTES4, new)), Parts::ALL);
    assert_eq!(order(&sync.state, "10.1.0.0/16"), [2]);
    assert_eq!(
        sync.take_changed(),
        Parts::ROUTES4,
        "what is as before is no news"
    );
    assert_eq!((sync.statistics.overruns, sync.statistics.resyncs), (1, 1));
}

#[test]
fn a_notification_during_a_dump_is_newer_than_the_dump() {
    let mut sync = Sync::new(PORT);
    let prefix = "10.1.0.0/16";
    let old = || route(prefix, "10.0.0.1", 0);
    dump_all(&mut sync, |part| {
        if part == Parts::ROUTES4 {
            vec![Message::NewRoute(old())]
        } else {
            Vec::new()
        }
    });
    sync.overrun();
    sync.drained();
    dump_all(&mut sync, |_| Vec::new());
    sync.overrun();
    sync.drained();
    while let Some(at) = sync.next_dump_at() {
        let part = sync.next_dump(at).unwrap();
        sync.started(part, 7);
        if part == Parts::ROUTES4 {
            // The route goes, and only then comes the part of the dump that was made before that.
            sync.datagram(&datagram(Message::NewRoute(old()), NLM_F_CREATE, 0));
            sync.datagram(&datagram(Message::DelRoute(old()), 0, 0));
            assert!(sync.state.main_v4().is_empty());
            sync.datagram(&datagram(Message::NewRoute(old()), NLM_F_MULTIPART, 7));
        }
        sync.datagram(&done(7));
    }
    assert!(sync.state.main_v4().is_empty());
}

/// A link came, and that it is up was lost: what still waits says "down" when the kernel has long been asked.
#[test]
fn what_waits_when_notifications_are_lost_is_not_said_again_to_a_younger_dump() {
    let mut sync = Sync::new(PORT);
    dump_all(&mut sync, |_| Vec::new());
    sync.overrun();
    assert_eq!(
        sync.next_dump(Instant::now() + Duration::from_secs(9)),
        None
    );
    sync.datagram(&datagram(Message::NewLink(link(ETH, "eth0", false)), 0, 0));
    sync.drained();
    let up = |part| match part {
        Parts::LINKS => vec![Message::NewLink(link(ETH, "eth0", true))],
        _ => Vec::new(),
    };
    assert_eq!(dump_all(&mut sync, up), Parts::ALL);
    assert!(sync.state.link(ETH).unwrap().up);
}

#[test]
fn an_interrupted_dump_is_repeated() {
    let mut sync = Sync::new(PORT);
    dump_all(&mut sync, |_| Vec::new());
    sync.overrun();
    sync.drained();
    let part = sync.next_dump(sync.next_dump_at().unwrap()).unwrap();
    sync.started(part, 9);
    let flags = NLM_F_MULTIPART | NLM_F_DUMP_INTR;
    sync.datagram(&datagram(
        Message::NewLink(link(ETH, "eth0", true)),
        flags,
        9,
    ));
    sync.datagram(&done(9));
    assert!(sync.missing().contains(part));
    assert_eq!(sync.statistics.interrupted, 1);
    // What it brought is used until then.
    assert!(sync.state.link(ETH).is_some());
}

#[test]
fn a_link_that_changes_during_a_dump_of_routes_has_them_dumped_again() {
    let mut sync = Sync::new(PORT);
    let mut flapped = false;
    while let Some(at) = sync.next_dump_at() {
        let part = sync.next_dump(at.max(Instant::now())).unwrap();
        sync.started(part, 9);
        if part == Parts::ROUTES4 && !flapped {
            flapped = true;
            sync.datagram(&datagram(Message::NewLink(link(ETH, "eth0", false)), 0, 0));
            sync.datagram(&done(9));
            assert!(sync.missing().contains(Parts::ROUTES4));
            continue;
        }
        sync.datagram(&done(9));
    }
}

proptest::proptest! {
    /// Whatever arrives, nothing panics, and what cannot be understood has everything read anew.
    #[test]
    fn broken_datagrams_are_survived(
        at in 0usize..200,
        byte: u8,
        cut in 0usize..200,
        kind in 16u16..110,
    ) {
        let mut bytes = datagram(Message::NewRoute(route("10.1.0.0/16", "10.0.0.1", 5)), 0, 0);
        bytes.extend(datagram(Message::NewLink(link(ETH, "eth0", true)), 0, 0));
        bytes.extend(datagram(Message::NewNeighbour(neighbour(NeighbourState::Stale, NeighbourFlags::empty(), 1)), 0, 0));
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let len = bytes.len();
        bytes[at % len] = byte;
        bytes.truncate(len - cut % len);
        let mut sync = Sync::new(PORT);
        sync.datagram(&bytes);
    }
}

#[test]
fn a_datagram_that_ends_early_has_everything_read_anew() {
    let mut sync = Sync::new(PORT);
    dump_all(&mut sync, |_| Vec::new());
    let mut bytes = datagram(Message::NewLink(link(ETH, "eth0", true)), 0, 0);
    bytes.truncate(bytes.len() - 4);
    sync.datagram(&bytes);
    assert_eq!(sync.missing(), Parts::ALL);
    assert_eq!(sync.statistics.undecodable, 1);
}
