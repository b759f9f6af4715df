//! The pictures: from model and view to cells of the terminal. They fit 80 columns and 24 lines.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Clear, Paragraph, Wrap},
};

use super::{
    look::{Look, bits, count, percent, rate},
    model::{Model, Port, Tunnel, Worker},
    view::{Screen, View},
};
use crate::control::report::{TunnelReport, human};

/// Below this there is no sense in a table.
const SMALLEST: (u16, u16) = (40, 10);
/// Rows of workers, of ports, and of drops, before there are tunnels.
const ROWS: usize = 4;

const HELP: &str = "\
 up down  j k        select a tunnel          enter  right   open it
 pgup pgdn home end                           esc    left    back
 /                   filter by name or state; enter keeps it, esc clears it
 b n s r t p d       sort by traffic, name, state, rx, tx, packets, drops;
                     the same key again, or i, turns the order round
 space               let the numbers stand still
 ?  h                this help                q  ctrl-c      quit

 rx        came out of the tunnel, tx went into it; inner bits a second
 fast      share of the packets that went past the kernel
 busy      share of its time that a worker was awake: near 100 % it can
           lose packets
 lost      frames that the kernel could not give to the worker
           (rx_dropped, rx_ring_full); full: the device took no more;
           empty: times that the kernel found no buffer, ever
 path      the largest outer packet on the narrowest way, if a router said
 drops     by reason; the README says what each means, and what to do";

pub fn draw(
    frame: &mut Frame<'_>,
    model: &Model,
    (view, opened): (&mut View, Option<&TunnelReport>),
    look: Look,
) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = format!("too small: {} x {} at least", SMALLEST.0, SMALLEST.1);
        return frame.render_widget(Paragraph::new(text), area);
    }
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(header(model, view, look)), head);
    if model.at.is_none() {
        frame.render_widget(Paragraph::new(waiting(model)), body);
    } else {
        match &view.screen {
            Screen::Tunnels => tunnels(frame, body, model, view, look),
            Screen::Tunnel(name) => {
                let name = name.clone();
                tunnel(frame, body, (model.tunnel(&name), opened), view, look);
            }
            Screen::Help => {}
        }
    }
    if view.screen == Screen::Help {
        frame.render_widget(Clear, body);
        frame.render_widget(Paragraph::new(HELP), body);
    }
    frame.render_widget(Paragraph::new(footer(view, look)), foot);
}

fn waiting(model: &Model) -> String {
    match &model.lost {
        Some(why) => format!("\n {why}\n\n waiting for a router"),
        None => "\n asking the router".to_owned(),
    }
}

fn header(model: &Model, view: &View, look: Look) -> Vec<Line<'static>> {
    let router = &model.router;
    // What is left to the kernel is in no state of ours.
    let ours = model.tunnels.iter().filter(|t| t.now.state != "kernel");
    let (all, up) = ours.fold((0, 0), |(all, up), t| {
        (all + 1, up + usize::from(t.now.state == "up"))
    });
    let sum = model.sum();
    let mut first = vec![Span::styled(
        format!(" greyhound {}", router.version),
        look.strong(),
    )];
    if model.at.is_some() {
        first.push(Span::raw(format!(
            "  up {}",
            duration(router.uptime_seconds)
        )));
        let text = format!("  tunnels {up}/{all} up");
        let style = if up == all { look.plain() } else { look.warn() };
        first.push(Span::styled(text, style));
    }
    if view.paused {
        first.push(Span::styled("  paused", look.warn()));
    }
    let bad = match (&model.lost, model.at) {
        (Some(_), Some(_)) => Some("the router does not answer: waiting for it".to_owned()),
        _ => router.problems.first().map(|problem| problem.what.clone()),
    };
    let second = match bad {
        Some(bad) => Line::from(Span::styled(format!(" {bad}"), look.bad())),
        None => {
            let drops = Span::styled(
                format!("  drops {}/s", rate(sum.drops)),
                look.bad_if(sum.drops > 0.0),
            );
            let traffic = format!(
                " rx {}  tx {}  {} packets/s  fast {}",
                bits(sum.rx_bits),
                bits(sum.tx_bits),
                rate(sum.packets),
                percent(sum.fast)
            );
            Line::from(vec![Span::raw(traffic), drops])
        }
    };
    vec![Line::from(first), second]
}

fn footer(view: &View, look: Look) -> Line<'static> {
    if view.typing {
        let text = format!(" filter: {}_", view.filter);
        return Line::styled(text, look.strong());
    }
    let mut text = match view.screen {
        Screen::Tunnels => {
            let order = if view.inverted { ", turned round" } else { "" };
            format!(
                " ? help  q quit  / filter  enter open  by {}{order}",
                view.sort.word()
            )
        }
        Screen::Tunnel(_) => " esc back  ? help  q quit".to_owned(),
        Screen::Help => " any key: back".to_owned(),
    };
    if !view.filter.is_empty() && view.screen == Screen::Tunnels {
        text += &format!("  only {:?}", view.filter);
    }
    Line::styled(text, look.faint())
}

/// Workers, ports and drops in few lines, and the tunnels in all others.
fn tunnels(frame: &mut Frame<'_>, area: Rect, model: &Model, view: &mut View, look: Look) {
    let mut lines = vec![Line::styled(WORKER_HEAD, look.head())];
    let busiest = some(&model.workers, ROWS, |w| w.busy.unwrap_or_default());
    lines.extend(busiest.into_iter().map(|w| worker(w, look)));
    if model.workers.is_empty() {
        lines.push(Line::styled(
            " no fast path: everything takes the slow one",
            look.warn(),
        ));
    } else {
        lines.push(Line::styled(PORT_HEAD, look.head()));
        let most = some(&model.ports, ROWS, |p| p.lost + p.ring_full);
        lines.extend(most.into_iter().map(|p| port(p, look)));
    }
    lines.push(drops(model, look));
    let most = usize::from(area.height).saturating_sub(4);
    lines.truncate(most);
    let [above, table] =
        Layout::vertical([Constraint::Length(lines.len() as u16), Constraint::Min(0)]).areas(area);
    frame.render_widget(Paragraph::new(lines), above);
    tunnel_table(frame, table, model, view, look);
}

/// The first of them in their order; of more than `most`, those with the largest number.
fn some<T>(all: &[T], most: usize, number: impl Fn(&T) -> f64) -> Vec<&T> {
    let mut some: Vec<&T> = all.iter().collect();
    if some.len() > most {
        some.sort_by(|a, b| number(b).total_cmp(&number(a)));
        some.truncate(most);
    }
    some
}

const WORKER_HEAD: &str =
    " worker cpu busy          rx pkt/s  tx pkt/s   punts/s   drops/s  free frames";

fn worker(w: &Worker, look: Look) -> Line<'static> {
    let busy = w.busy.unwrap_or_default();
    let style = look.level(busy);
    let frames = |place: &str| w.now.frames.get(place).copied().unwrap_or_default();
    let free = match frames("total") {
        0 => "-".to_owned(),
        total => percent(Some(frames("free") as f64 / total as f64)),
    };
    Line::from(vec![
        Span::raw(format!(" {:>6} {:>3} ", w.now.id, w.now.cpu)),
        Span::styled(
            format!("{:>6} {}", percent(w.busy), look.bar(busy, 6)),
            style,
        ),
        Span::raw(format!(
            " {:>9} {:>9} {:>9} ",
            rate(w.rx),
            rate(w.tx),
            rate(w.punts)
        )),
        Span::styled(format!("{:>9}", rate(w.drops)), look.bad_if(w.drops > 0.0)),
        Span::raw(format!("  {free:>11}")),
    ])
}

const PORT_HEAD: &str =
    " device            q mode       rx pkt/s  tx pkt/s   lost/s   full/s    empty";

fn port(p: &Port, look: Look) -> Line<'static> {
    let alarm = |n: f64| look.bad_if(n > 0.0);
    let mode = match p.now.mode.as_str() {
        "down" => look.bad(),
        _ => look.plain(),
    };
    Line::from(vec![
        Span::raw(format!(" {:<15} {:>3} ", p.now.device, p.now.queue)),
        Span::styled(format!("{:<9} ", p.now.mode), mode),
        Span::raw(format!("{:>9} {:>9} ", rate(p.rx), rate(p.tx))),
        Span::styled(format!("{:>8} ", rate(p.lost)), alarm(p.lost)),
        Span::styled(format!("{:>8}", rate(p.ring_full)), alarm(p.ring_full)),
        Span::raw(format!(" {:>8}", count(p.now.fill_ring_empty))),
    ])
}

/// What is dropped now by its rate, else what was dropped before by its number.
fn drops(model: &Model, look: Look) -> Line<'static> {
    let now: Vec<String> = (model.drops.iter())
        .filter(|drop| drop.rate > 0.0)
        .map(|drop| format!("{} {}/s", drop.reason, rate(drop.rate)))
        .collect();
    if !now.is_empty() {
        return Line::styled(format!(" drops: {}", now.join("  ")), look.bad());
    }
    let before: Vec<String> = (model.drops.iter())
        .map(|drop| format!("{} {}", drop.reason, count(drop.total)))
        .collect();
    match before.is_empty() {
        true => Line::styled(" drops: none", look.faint()),
        false => Line::styled(
            format!(" drops before: {}", before.join("  ")),
            look.faint(),
        ),
    }
}

/// The columns of the table of tunnels that find room.
struct Columns {
    name: usize,
    path: bool,
    keepalive: bool,
    spark: usize,
}

impl Columns {
    /// The space that the columns take which are always there, less the name.
    const FIXED: usize = 1 + 13 + 10 + 10 + 8 + 7 + 8;

    fn of(width: u16, rows: &[&Tunnel]) -> Self {
        let names = rows.iter().map(|t| t.now.name.chars().count());
        let name = names.max().unwrap_or_default().clamp(6, 15);
        let mut left = usize::from(width).saturating_sub(name + Self::FIXED);
        let path = rows.iter().any(|t| t.now.path_mtu.is_some()) && left >= 6;
        left -= if path { 6 } else { 0 };
        let keepalive = rows.iter().any(|t| t.now.keepalive.is_some()) && left >= 6;
        left -= if keepalive { 6 } else { 0 };
        Self {
            name,
            path,
            keepalive,
            spark: if left >= 6 { (left - 1).min(60) } else { 0 },
        }
    }

    fn head(&self) -> String {
        let mut head = format!(
            " {:<name$} {:<12} {:>9} {:>9} {:>7} {:>6} {:>7}",
            "tunnel",
            "state",
            "rx",
            "tx",
            "pkt/s",
            "fast",
            "drops/s",
            name = self.name
        );
        if self.path {
            head += "  path";
        }
        if self.keepalive {
            head += " alive";
        }
        head
    }

    fn row(&self, t: &Tunnel, look: Look) -> Line<'static> {
        let r = &t.rates;
        let mut spans = vec![
            Span::raw(format!(" {:<name$} ", t.now.name, name = self.name)),
            Span::styled(format!("{:<12}", t.now.state), look.state(&t.now.state)),
            Span::raw(format!(
                " {:>9} {:>9} {:>7} {:>6} ",
                bits(r.rx_bits),
                bits(r.tx_bits),
                rate(r.packets),
                percent(r.fast)
            )),
            Span::styled(format!("{:>7}", rate(r.drops)), look.bad_if(r.drops > 0.0)),
        ];
        if self.path {
            let path = t.now.path_mtu.map_or("-".to_owned(), |mtu| mtu.to_string());
            spans.push(Span::raw(format!(" {path:>5}")));
        }
        if self.keepalive {
            let word = t.now.keepalive.as_deref().unwrap_or("-");
            spans.push(Span::styled(format!(" {word:>5}"), look.state(word)));
        }
        if self.spark > 0 {
            let sums: Vec<u64> = t.rx.iter().zip(&t.tx).map(|(rx, tx)| rx + tx).collect();
            let spark = look.sparkline(&sums, self.spark);
            spans.push(Span::styled(format!(" {spark}"), look.faint()));
        }
        Line::from(spans)
    }
}

fn tunnel_table(frame: &mut Frame<'_>, area: Rect, model: &Model, view: &mut View, look: Look) {
    let rows = view.rows(model);
    let columns = Columns::of(area.width, &rows);
    let page = usize::from(area.height).saturating_sub(1);
    let at = view.position(&rows);
    let first =
        (view.top.min(at).max((at + 1).saturating_sub(page))).min(rows.len().saturating_sub(page));
    let mut lines = vec![Line::styled(columns.head(), look.head())];
    for (n, row) in rows.iter().enumerate().skip(first).take(page) {
        let line = columns.row(row, look);
        lines.push(if n == at {
            line.style(look.selected())
        } else {
            line
        });
    }
    if rows.is_empty() {
        let why = match model.tunnels.is_empty() {
            true => " no tunnels",
            false => " none of that name or state",
        };
        lines.push(Line::raw(why));
    }
    (view.page, view.top) = (page, first);
    frame.render_widget(Paragraph::new(lines), area);
}

/// One tunnel in full: its text as `tunnel show` has it, and both histories.
fn tunnel(
    frame: &mut Frame<'_>,
    area: Rect,
    (live, opened): (Option<&Tunnel>, Option<&TunnelReport>),
    view: &mut View,
    look: Look,
) {
    let Some(live) = live else {
        let text = Paragraph::new("\n this tunnel is gone");
        return frame.render_widget(text, area);
    };
    let width = usize::from(area.width).saturating_sub(18).min(120);
    let history = |word: &str, bps: f64, history: &std::collections::VecDeque<u64>| {
        let samples: Vec<u64> = history.iter().copied().collect();
        let text = format!(
            " {word} {:>9}  {}",
            bits(bps),
            look.sparkline(&samples, width)
        );
        Line::raw(text)
    };
    let r = &live.rates;
    let mut lines = vec![
        history("rx", r.rx_bits, &live.rx),
        history("tx", r.tx_bits, &live.tx),
        Line::raw(format!(
            " {} packets/s  fast {}  drops {}/s",
            rate(r.packets),
            percent(r.fast),
            rate(r.drops)
        )),
        Line::raw(""),
    ];
    match opened.filter(|report| report.name == live.now.name) {
        Some(report) => {
            let text = human::tunnels(std::slice::from_ref(report));
            lines.extend(text.lines().map(|line| Line::raw(format!(" {line}"))));
        }
        None => lines.push(Line::raw(" asking the router")),
    }
    let cells = usize::from(area.width.max(1));
    let needed: usize = lines
        .iter()
        .map(|line| line.width().max(1).div_ceil(cells))
        .sum();
    view.top = view.top.min(needed.saturating_sub(area.height.into()));
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(text.scroll((view.top as u16, 0)), area);
}

/// Two units are enough.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
