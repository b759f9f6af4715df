//! The table in words.

use super::*;
use crate::control::report::routes::{RoutePage, line};

fn show(net: &Net, query: Query) -> RoutePage {
    let mut compiler = Compiler::default();
    net.compile_by(&mut compiler, Parts::ALL, &Touched::all());
    let tunnels = net.tunnels();
    let input = Input {
        state: &net.state,
        devices: &net.devices,
        tunnels: &tunnels,
        what: Parts::NONE,
        touched: &Touched::default(),
    };
    compiler.show(input, query)
}

fn lines(net: &Net, within: &str) -> Vec<String> {
    let query = Query {
        within: Some(within.parse().unwrap()),
        limit: 100,
        ..Query::default()
    };
    let page = show(net, query);
    assert!(!page.more);
    let text: String = page.routes.iter().map(line).collect();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn each_route_says_where_it_leads_and_why_not_fast() {
    let mut net = Net::new();
    net.route("10.2.0.0/16", route_by(GRE1, None));
    net.route("10.3.0.0/16", route_by(GRE2, None));
    net.route("10.4.0.0/16", route_by(ETH1, Some("10.1.0.9")));
    net.neighbour(ETH1, "10.1.0.9", Nud::Reachable);
    net.route("10.5.0.0/16", route_by(ETH1, Some("10.1.0.8")));
    net.link(link(99, "eth9", 9000));
    net.route("10.6.0.0/16", route_by(99, None));
    net.route(
        "10.7.0.0/16",
        Route {
            kind: RouteKind::Blackhole,
            hops: Vec::new(),
            ..route_by(0, None)
        },
    );
    net.route(
        "10.8.0.0/16",
        Route {
            tos: 4,
            ..route_by(ETH1, None)
        },
    );
    net.route(
        "10.9.0.0/16",
        Route {
            hops: vec![route_by(GRE1, None).hops[0], route_by(GRE2, None).hops[0]],
            ..route_by(0, None)
        },
    );
    net.route(
        "10.10.0.0/16",
        Route {
            nexthop_id: Some(7),
            hops: Vec::new(),
            ..route_by(0, None)
        },
    );
    net.neighbour(ETH0, "192.0.2.2", Nud::Failed);
    assert_eq!(
        lines(&net, "10.0.0.0/8"),
        [
            "local 10.1.0.1/32 dev eth1 mtu 1500  slow: the kernel's",
            "10.2.0.0/16 dev gre1 mtu 1476  fast",
            "10.3.0.0/16 dev gre2 mtu 1476  slow: 192.0.2.2 on eth0 has no link address yet",
            "10.4.0.0/16 via 10.1.0.9 dev eth1 mtu 1500  fast",
            "10.5.0.0/16 via 10.1.0.8 dev eth1 mtu 1500  slow: 10.1.0.8 on eth1 has no link address yet",
            "10.6.0.0/16 dev eth9 mtu 9000  slow: eth9 is no device of the fast path",
            "blackhole 10.7.0.0/16  slow: the kernel's",
            "10.8.0.0/16 dev eth1 mtu 1500  slow: other routes of the prefix depend on TOS or source",
            "10.9.0.0/16  fast: 192.0.2.2 on eth0 has no link address yet",
            "\tnexthop dev gre1 mtu 1476 weight 1",
            "\tnexthop dev gre2 mtu 1476 weight 1",
            "10.10.0.0/16  slow: nexthop object 7 has no plain hops",
        ]
    );
    // The one that contains what is asked for comes first.
    assert_eq!(lines(&net, "10.2.0.1/32").len(), 1);
    net.state.apply(Event::DelLink(GRE1));
    net.route("10.2.0.0/16", route_by(GRE1, None));
    let slow = "10.2.0.0/16 dev 11  slow: gre1 is down";
    assert_eq!(lines(&net, "10.2.0.0/16"), [slow]);
}

#[test]
fn a_table_comes_page_by_page() {
    let mut net = Net::new();
    for third in 0..20 {
        net.route(&format!("10.2.{third}.0/24"), route_by(GRE1, None));
        net.route(&format!("fd00:{third}::/32"), route_by(GRE1, None));
    }
    let whole = show(
        &net,
        Query {
            limit: 1000,
            ..Query::default()
        },
    );
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = show(
            &net,
            Query {
                after,
                limit: 7,
                ..Query::default()
            },
        );
        after = page
            .routes
            .last()
            .map(|route| route.prefix.parse().unwrap());
        pages.extend(page.routes);
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, whole.routes);
    assert_eq!(pages.len(), 2 + 2 + 40);
}
