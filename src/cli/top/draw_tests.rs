use super::super::model::tests::glance;
use super::*;
use crate::control::report::glance::TunnelGlance;
use ratatui::{Terminal, backend::TestBackend};
use std::time::{Duration, Instant};

const LOOK: Look = Look {
    colours: false,
    blocks: false,
};

fn model() -> Model {
    let (mut model, start) = (Model::default(), Instant::now());
    for n in 1..40 {
        model.take(glance(1, n), start + Duration::from_secs(n));
    }
    model
}

fn picture((width, height): (u16, u16), model: &Model, view: &mut View) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let drawn = terminal.draw(|frame| draw(frame, model, (view, None), LOOK));
    let buffer = drawn.unwrap().buffer;
    let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    let rows = cells.chunks(usize::from(width));
    rows.map(|row| row.concat().trim_end().to_owned()).collect()
}

#[test]
fn all_of_it_in_80_by_24() {
    let rows = picture((80, 24), &model(), &mut View::default());
    assert_eq!(
        rows[..11],
        [
            " greyhound   up 0 s  tunnels 2/2 up",
            " rx 1.01Mb  tx 2.02Mb  2.02k packets/s  fast 50.0%  drops 101/s",
            " worker cpu busy          rx pkt/s  tx pkt/s   punts/s   drops/s  free frames",
            "      0   0  25.0% ##....     2.00k         0         0         0            -",
            " device            q mode       rx pkt/s  tx pkt/s   lost/s   full/s    empty",
            " eth0              0 copy              0         0        6        0        0",
            " drops: sequence_old 101/s",
            " tunnel state               rx        tx   pkt/s   fast drops/s",
            " gre1   up              1.00Mb    2.00Mb   2.00k  50.0%     100 @@@@@@@@@@@@@@@@",
            " gre2   up              10.0kb    20.0kb      20  50.0%       1 @@@@@@@@@@@@@@@@",
            "",
        ]
    );
    assert_eq!(
        rows[23],
        " ? help  q quit  / filter  enter open  by traffic"
    );
}

#[test]
fn what_is_narrow_or_silent_has_its_column() {
    let mut model = model();
    let mut glance = glance(1, 40);
    glance.tunnels[0] = TunnelGlance {
        path_mtu: Some(1400),
        keepalive: Some("down".to_owned()),
        state: "no-keepalive".to_owned(),
        ..glance.tunnels[0].clone()
    };
    glance.router.problems = vec![crate::control::report::Problem {
        what: "fast path off: why".to_owned(),
        hangs: false,
    }];
    model.take(glance, Instant::now() + Duration::from_secs(60));
    let rows = picture((80, 24), &model, &mut View::default());
    assert_eq!(rows[0], " greyhound   up 0 s  tunnels 1/2 up");
    assert_eq!(rows[1], " fast path off: why");
    assert!(rows[7].ends_with("drops/s  path alive"), "{}", rows[7]);
    assert!(rows[8].starts_with(" gre1   no-keepalive "), "{}", rows[8]);
    assert!(rows[8].ends_with("  1400  down"), "{}", rows[8]);
}

#[test]
fn every_size_is_drawn_and_the_selected_tunnel_is_seen() {
    let mut model = model();
    for n in 40..42 {
        let mut many = glance(1, n);
        let tunnel = |k| TunnelGlance {
            name: format!("gre{k}"),
            ..many.tunnels[0].clone()
        };
        many.tunnels = (0..10_000).map(tunnel).collect();
        model.take(many, Instant::now() + Duration::from_secs(n));
    }
    let mut view = View {
        sort: super::super::view::Sort::Name,
        selected: Some("gre5000".to_owned()),
        ..View::default()
    };
    for size in [(1, 1), (40, 10), (80, 24), (39, 50), (300, 100), (80, 10)] {
        for screen in [
            Screen::Tunnels,
            Screen::Help,
            Screen::Tunnel("gre7".to_owned()),
        ] {
            view.screen = screen;
            let rows = picture(size, &model, &mut view);
            if size.0 >= 40 && view.screen == Screen::Tunnels {
                let seen = rows
                    .iter()
                    .filter(|row| row.starts_with(" gre5000 "))
                    .count();
                assert_eq!(seen, 1, "{size:?}\n{}", rows.join("\n"));
            }
        }
    }
    let small = picture((39, 50), &model, &mut view);
    assert_eq!(small[0], "too small: 40 x 10 at least");
}

#[test]
fn without_a_router_it_waits() {
    let (mut model, mut view) = (Model::default(), View::default());
    model.lose("no greyhound answers on /s: is `greyhound run` running?".to_owned());
    let rows = picture((80, 24), &model, &mut view);
    assert_eq!(
        rows[3],
        " no greyhound answers on /s: is `greyhound run` running?"
    );
    assert_eq!(rows[5], " waiting for a router");
    model.take(glance(1, 1), Instant::now());
    model.lose("gone".to_owned());
    let rows = picture((80, 24), &model, &mut view);
    assert_eq!(rows[1], " the router does not answer: waiting for it");
}
