//! What is on the screen: a line for each guest, and graphs of the one that is chosen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table, TableState};

use super::super::table::{bytes, cell, number};
use super::rates::{History, Rates};

/// What guests can be sorted by, each with how its column is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Name,
    Cpu,
    Memory,
    Exits,
}

impl Order {
    /// The one after it.
    pub fn next(self) -> Self {
        match self {
            Self::Name => Self::Cpu,
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Exits,
            Self::Exits => Self::Name,
        }
    }

    fn column(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Cpu => "CPU%",
            Self::Memory => "MEMORY",
            Self::Exits => "EXITS/s",
        }
    }

    /// Puts the guests in this order: the largest first.
    pub fn sort(self, guests: &mut [(&String, &History)]) {
        let of = |history: &History| {
            history.now().map_or(0.0, |now| match self {
                Self::Name => 0.0,
                Self::Cpu => now.cpu,
                Self::Memory => now.memory as f64,
                Self::Exits => now.exits,
            })
        };
        guests.sort_by(|(name, a), (other, b)| of(b).total_cmp(&of(a)).then_with(|| name.cmp(other)));
    }
}

/// What is shown.
pub struct View<'a> {
    /// In the order in which they are shown.
    pub guests: Vec<(&'a String, &'a History)>,
    /// Which of them is chosen.
    pub chosen: usize,
    /// What they are sorted by.
    pub order: Order,
    /// What went wrong at the last look.
    pub trouble: &'a str,
    /// Whether the terminal is to have colours.
    pub colours: bool,
}

const HEAD: [&str; 8] = [
    "NAME",
    "CPU%",
    "MEMORY",
    "EXITS/s",
    "READ/s",
    "WRITTEN/s",
    "RECEIVED/s",
    "SENT/s",
];
/// Lines of the graphs.
const GRAPHS: u16 = 10;

impl View<'_> {
    /// Draws it.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let [title, list, graphs, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(if self.guests.is_empty() { 0 } else { GRAPHS }),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let count = self.guests.len();
        let guests = if count == 1 { "guest" } else { "guests" };
        frame.render_widget(
            Line::styled(format!("posada: {count} {guests}"), self.bold()),
            title,
        );
        self.draw_list(frame, list);
        if let Some((name, history)) = self.guests.get(self.chosen) {
            self.draw_graphs(frame, graphs, name, history);
        }
        let line = match self.trouble {
            "" => "q quit   ↑↓ choose   s sort",
            trouble => trouble,
        };
        frame.render_widget(Line::raw(line), keys);
    }

    fn bold(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn colour(&self, colour: Color) -> Style {
        match self.colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    fn draw_list(&self, frame: &mut Frame<'_>, area: Rect) {
        let head = HEAD.map(|column| match column == self.order.column() {
            true => Line::styled(format!("{column}▾"), self.bold()),
            false => Line::styled(column, self.bold()),
        });
        let rows = self
            .guests
            .iter()
            .map(|(name, history)| Row::new(cells(name, history.now())));
        let widths = [
            Constraint::Min(12),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(11),
            Constraint::Length(8),
        ];
        let table = Table::new(rows, widths)
            .header(Row::new(head))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected(Some(self.chosen));
        frame.render_stateful_widget(table, area, &mut state);
    }

    fn draw_graphs(&self, frame: &mut Frame<'_>, area: Rect, name: &str, history: &History) {
        let [graphs, kinds] = Layout::horizontal([Constraint::Min(20), Constraint::Length(32)]).areas(area);
        let now = history.now().cloned().unwrap_or_default();
        let of = |part: fn(&Rates) -> f64| history.rates.iter().map(part).collect::<Vec<_>>();
        let lines = [
            (
                format!("{name}: CPU {:.1} %", now.cpu),
                of(|rates| rates.cpu),
                Color::Green,
            ),
            (
                format!("exits {}/s", number(now.exits as u64)),
                of(|rates| rates.exits),
                Color::Yellow,
            ),
            (
                format!(
                    "disks {}/s read, {}/s written",
                    bytes(now.read as u64),
                    bytes(now.written as u64)
                ),
                of(|rates| rates.read + rates.written),
                Color::Blue,
            ),
            (
                format!(
                    "networks {}/s received, {}/s sent",
                    bytes(now.received as u64),
                    bytes(now.sent as u64)
                ),
                of(|rates| rates.received + rates.sent),
                Color::Magenta,
            ),
        ];
        let areas: [Rect; 4] = Layout::vertical([Constraint::Fill(1); 4]).areas(graphs);
        for ((title, values, colour), area) in lines.into_iter().zip(areas) {
            // The newest are shown, at the right.
            let room = usize::from(area.width).max(1);
            let shown = values.iter().skip(values.len().saturating_sub(room));
            let graph = Sparkline::default()
                .block(Block::new().title(title))
                .style(self.colour(colour))
                .data(shown.map(|value| value.round() as u64));
            frame.render_widget(graph, area);
        }
        let mut text = vec![Line::styled("exits/s by kind", self.bold())];
        let kinds_now = now.exits_by_kind.iter().filter(|(_, rate)| *rate > 0.0);
        text.extend(
            kinds_now.map(|(kind, rate)| Line::raw(format!("{kind:<16} {:>8}", number(*rate as u64)))),
        );
        frame.render_widget(Paragraph::new(text), kinds);
    }
}

fn cells(name: &str, now: Option<&Rates>) -> [String; 8] {
    let amount =
        |part: fn(&Rates) -> f64, unit: fn(u64) -> String| cell(now.map(|now| unit(part(now) as u64)));
    [
        name.to_owned(),
        cell(now.map(|now| format!("{:.1}", now.cpu))),
        cell(now.map(|now| bytes(now.memory))),
        amount(|rates| rates.exits, number),
        amount(|rates| rates.read, bytes),
        amount(|rates| rates.written, bytes),
        amount(|rates| rates.received, bytes),
        amount(|rates| rates.sent, bytes),
    ]
}
