//! What is shown of the model, in which order, and what the keys do to that.

use std::cmp::Ordering;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Model, Tunnel};

/// By what tunnels are sorted; numbers from the largest down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    #[default]
    Traffic,
    Name,
    State,
    Rx,
    Tx,
    Packets,
    Drops,
}

impl Sort {
    fn of(key: char) -> Option<Sort> {
        Some(match key {
            'b' => Sort::Traffic,
            'n' => Sort::Name,
            's' => Sort::State,
            'r' => Sort::Rx,
            't' => Sort::Tx,
            'p' => Sort::Packets,
            'd' => Sort::Drops,
            _ => return None,
        })
    }

    pub fn word(self) -> &'static str {
        match self {
            Sort::Traffic => "traffic",
            Sort::Name => "name",
            Sort::State => "state",
            Sort::Rx => "rx",
            Sort::Tx => "tx",
            Sort::Packets => "packets",
            Sort::Drops => "drops",
        }
    }

    fn compare(self, a: &Tunnel, b: &Tunnel) -> Ordering {
        let down = |rate: fn(&Tunnel) -> f64| rate(b).total_cmp(&rate(a));
        match self {
            Sort::Traffic => down(|t| t.rates.rx_bits + t.rates.tx_bits),
            Sort::Name => Ordering::Equal,
            // Those that want looking at come first.
            Sort::State => (a.now.state == "up")
                .cmp(&(b.now.state == "up"))
                .then_with(|| a.now.state.cmp(&b.now.state)),
            Sort::Rx => down(|t| t.rates.rx_bits),
            Sort::Tx => down(|t| t.rates.tx_bits),
            Sort::Packets => down(|t| t.rates.packets),
            Sort::Drops => down(|t| t.rates.drops).then_with(|| b.now.drops.cmp(&a.now.drops)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Screen {
    #[default]
    Tunnels,
    Tunnel(String),
    Help,
}

/// What a key asks of the loop, beside another picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    Nothing,
    Quit,
    Suspend,
    /// To ask for this tunnel in full, or for none.
    Want(Option<String>),
}

#[derive(Debug, Default)]
pub struct View {
    pub screen: Screen,
    pub sort: Sort,
    pub inverted: bool,
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// Numbers stand still.
    pub paused: bool,
    /// By name, so that it stays where it is when the order changes.
    pub selected: Option<String>,
    /// Rows of the table that were seen last.
    pub page: usize,
    /// The first row that is shown of it, or of a tunnel's text.
    pub top: usize,
}

impl View {
    /// The tunnels that pass the filter, in order.
    pub fn rows<'m>(&self, model: &'m Model) -> Vec<&'m Tunnel> {
        let wanted = self.filter.to_lowercase();
        let passes = |t: &&Tunnel| {
            t.now.name.to_lowercase().contains(&wanted) || t.now.state.contains(&wanted)
        };
        let mut rows: Vec<&Tunnel> = model.tunnels.iter().filter(passes).collect();
        rows.sort_by(|a, b| {
            let order = (self.sort.compare(a, b)).then_with(|| natural(&a.now.name, &b.now.name));
            if self.inverted {
                order.reverse()
            } else {
                order
            }
        });
        rows
    }

    /// Where the selected one is among these; the first where it is not.
    pub fn position(&self, rows: &[&Tunnel]) -> usize {
        let selected = self.selected.as_deref();
        let found = rows
            .iter()
            .position(|t| Some(t.now.name.as_str()) == selected);
        found.unwrap_or_default()
    }

    pub fn key(&mut self, key: KeyEvent, model: &Model) -> Act {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Act::Quit,
                KeyCode::Char('z') => Act::Suspend,
                _ => Act::Nothing,
            };
        }
        if self.typing {
            self.type_filter(key.code);
            return Act::Nothing;
        }
        match (&self.screen, key.code) {
            (_, KeyCode::Char('q')) => Act::Quit,
            (Screen::Help, _) => self.back(),
            (_, KeyCode::Char('?' | 'h')) => {
                let leaves = matches!(self.screen, Screen::Tunnel(_));
                self.screen = Screen::Help;
                if leaves {
                    Act::Want(None)
                } else {
                    Act::Nothing
                }
            }
            (_, KeyCode::Char(' ')) => {
                self.paused = !self.paused;
                Act::Nothing
            }
            (Screen::Tunnel(_), code) => self.key_in_tunnel(code),
            (Screen::Tunnels, code) => self.key_in_table(code, model),
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            // No name is longer.
            KeyCode::Char(c) if !c.is_control() && self.filter.len() < 15 => self.filter.push(c),
            _ => {}
        }
    }

    fn key_in_tunnel(&mut self, code: KeyCode) -> Act {
        match code {
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace | KeyCode::Enter => {
                return self.back();
            }
            KeyCode::Down | KeyCode::Char('j') => self.top = self.top.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.top = self.top.saturating_sub(1),
            KeyCode::Home => self.top = 0,
            _ => {}
        }
        Act::Nothing
    }

    fn key_in_table(&mut self, code: KeyCode, model: &Model) -> Act {
        let page = self.page.max(1) as isize;
        match code {
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1, model),
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1, model),
            KeyCode::PageDown => self.move_by(page, model),
            KeyCode::PageUp => self.move_by(-page, model),
            KeyCode::Home => self.move_by(isize::MIN / 2, model),
            KeyCode::End => self.move_by(isize::MAX / 2, model),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('i') => self.inverted = !self.inverted,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Enter | KeyCode::Right => {
                let rows = self.rows(model);
                if let Some(tunnel) = rows.get(self.position(&rows)) {
                    let name = tunnel.now.name.clone();
                    self.selected = Some(name.clone());
                    self.screen = Screen::Tunnel(name.clone());
                    self.top = 0;
                    return Act::Want(Some(name));
                }
            }
            KeyCode::Char(c) => {
                if let Some(sort) = Sort::of(c) {
                    self.inverted = sort == self.sort && !self.inverted;
                    self.sort = sort;
                }
            }
            _ => {}
        }
        Act::Nothing
    }

    fn move_by(&mut self, rows: isize, model: &Model) {
        let all = self.rows(model);
        let last = all.len().saturating_sub(1);
        let to = self.position(&all).saturating_add_signed(rows).min(last);
        self.selected = all.get(to).map(|tunnel| tunnel.now.name.clone());
    }

    fn back(&mut self) -> Act {
        self.screen = Screen::Tunnels;
        self.top = 0;
        Act::Want(None)
    }
}

/// `gre9` before `gre10`.
fn natural(a: &str, b: &str) -> Ordering {
    let split = |name: &'_ str| {
        let at = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        (name[..at].to_owned(), name[at..].parse::<u64>().ok())
    };
    split(a).cmp(&split(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::glance;
    use super::*;
    use std::time::{Duration, Instant};

    fn model() -> Model {
        let (mut model, start) = (Model::default(), Instant::now());
        for n in 1..3 {
            let mut glance = glance(1, n);
            let mut third = glance.tunnels[1].clone();
            third.name = "gre10".to_owned();
            third.state = "down".to_owned();
            third.rx = third.tx;
            glance.tunnels.push(third);
            model.take(glance, start + Duration::from_secs(n));
        }
        model
    }

    fn names(view: &View, model: &Model) -> Vec<String> {
        let rows = view.rows(model);
        rows.iter().map(|t| t.now.name.clone()).collect()
    }

    fn press(view: &mut View, model: &Model, keys: &str) {
        for c in keys.chars() {
            view.key(KeyEvent::from(KeyCode::Char(c)), model);
        }
    }

    #[test]
    fn keys_sort_and_invert() {
        let (mut view, model) = (View::default(), model());
        assert_eq!(names(&view, &model), ["gre1", "gre10", "gre2"]);
        press(&mut view, &model, "n");
        assert_eq!(names(&view, &model), ["gre1", "gre2", "gre10"]);
        press(&mut view, &model, "n");
        assert_eq!(names(&view, &model), ["gre10", "gre2", "gre1"]);
        press(&mut view, &model, "s");
        assert_eq!(names(&view, &model), ["gre10", "gre1", "gre2"]);
        press(&mut view, &model, "si");
        assert_eq!(names(&view, &model), ["gre10", "gre1", "gre2"]);
    }

    #[test]
    fn the_selected_one_stays_selected_and_is_opened() {
        let (mut view, model) = (View::default(), model());
        press(&mut view, &model, "nj");
        assert_eq!(view.selected.as_deref(), Some("gre2"));
        press(&mut view, &model, "n");
        let open = view.key(KeyEvent::from(KeyCode::Enter), &model);
        assert_eq!(open, Act::Want(Some("gre2".to_owned())));
        assert_eq!(view.screen, Screen::Tunnel("gre2".to_owned()));
        assert_eq!(
            view.key(KeyEvent::from(KeyCode::Esc), &model),
            Act::Want(None)
        );
        view.key(KeyEvent::from(KeyCode::End), &model);
        press(&mut view, &model, "jjj");
        assert_eq!(view.selected.as_deref(), Some("gre1"));
    }

    #[test]
    fn a_filter_is_typed_and_taken_away() {
        let (mut view, model) = (View::default(), model());
        press(&mut view, &model, "/GRE1q");
        assert!(view.typing && names(&view, &model).is_empty());
        view.key(KeyEvent::from(KeyCode::Backspace), &model);
        assert_eq!(names(&view, &model), ["gre1", "gre10"]);
        view.key(KeyEvent::from(KeyCode::Enter), &model);
        assert_eq!(
            view.key(KeyEvent::from(KeyCode::Char('q')), &model),
            Act::Quit
        );
        view.key(KeyEvent::from(KeyCode::Esc), &model);
        assert_eq!(names(&view, &model).len(), 3);
    }
}
