//! What came of a campaign.

use super::judge::Judgement;
use super::model::{self, Model, Verdicts};
use super::outcome::Class;
use super::plan::Traffic;
use super::program::{Repetition, Test};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// How many examples of forbidden outcomes are kept for each test.
const EXAMPLES: usize = 3;
/// How many of the most frequent outcomes that prove nothing are shown to a person, for each test.
const SHOWN: usize = 4;
/// After so many iterations in which nobody ran at the same time as another, a test says nothing about that traffic.
const ENOUGH: u64 = 1000;

/// How often something was seen, by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counts {
    /// In all.
    pub iterations: u64,
    /// [`Class::Counted`].
    pub counted: u64,
    /// [`Class::Sequential`].
    pub sequential: u64,
    /// [`Class::Interleaved`].
    pub interleaved: u64,
    /// [`Class::Weak`].
    pub weak: u64,
    /// [`Class::Forbidden`].
    pub forbidden: u64,
}

/// One outcome of a test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OutcomeReport {
    /// What each participant read and the places held in the end.
    pub outcome: String,
    /// What it says.
    pub class: Class,
    /// How often it was seen; zero for weak ones that the processor allows and that were not seen.
    pub count: u64,
}

/// What a test has shown.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TestReport {
    /// Its name.
    pub name: &'static str,
    /// What it asks.
    pub asks: &'static str,
    /// How many took part.
    pub participants: usize,
    /// How many rounds there were.
    pub rounds: u64,
    /// What was seen.
    pub counts: Counts,
    /// As [`Counts::overlap`].
    pub overlap: f64,
    /// What was seen, by how the words travelled.
    pub by_traffic: BTreeMap<Traffic, Counts>,
    /// Every outcome that was seen, and the weak ones that were not.
    pub outcomes: Vec<OutcomeReport>,
    /// Where the first forbidden outcomes were seen.
    pub examples: Vec<String>,
}

/// What was under way meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Meanwhile {
    /// Faults of the CPU.
    pub cpu_faults: u64,
    /// Faults of devices.
    pub device_faults: u64,
    /// Pages that moved for whatever reason.
    pub migrations: u64,
    /// Pages that were evicted.
    pub evictions: u64,
    /// Pages that were moved by nobody who took part.
    pub disturbances: u64,
}

/// The outcome of a campaign.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The memory model that decides what is forbidden.
    pub model: &'static str,
    /// Everything that was seen.
    pub counts: Counts,
    /// The same, by how the words travelled.
    pub by_traffic: BTreeMap<Traffic, Counts>,
    /// What was under way.
    pub meanwhile: Meanwhile,
    /// Every test.
    pub tests: Vec<TestReport>,
    /// How long it took.
    pub seconds: f64,
}

/// What was seen of a test so far.
pub(crate) struct Tally {
    pub(crate) test: &'static Test,
    pub(crate) verdicts: Verdicts,
    rounds: u64,
    outcomes: BTreeMap<(Class, String), u64>,
    by_traffic: BTreeMap<Traffic, Counts>,
    examples: Vec<String>,
}

impl Counts {
    fn add(&mut self, class: Class, count: u64) {
        self.iterations += count;
        *match class {
            Class::Counted => &mut self.counted,
            Class::Sequential => &mut self.sequential,
            Class::Interleaved => &mut self.interleaved,
            Class::Weak => &mut self.weak,
            Class::Forbidden => &mut self.forbidden,
        } += count;
    }

    /// The share of iterations whose outcome shows that participants ran at the same time, of those whose outcome could.
    pub fn overlap(&self) -> f64 {
        (self.interleaved + self.weak) as f64 / (self.iterations - self.counted).max(1) as f64
    }

    fn add_all(&mut self, other: &Self) {
        let counts = [other.counted, other.sequential, other.interleaved, other.weak, other.forbidden];
        Class::ALL.into_iter().zip(counts).for_each(|(class, count)| self.add(class, count));
    }
}

impl Tally {
    pub(crate) fn new(test: &'static Test) -> Self {
        let verdicts = Verdicts::of(test);
        let mut outcomes = BTreeMap::new();
        if test.repetition == Repetition::Afresh {
            let weak = verdicts.allowed().filter(|outcome| verdicts.class(outcome) == Class::Weak);
            outcomes.extend(weak.map(|outcome| ((Class::Weak, outcome.text(test, false)), 0)));
        }
        Self { test, verdicts, rounds: 0, outcomes, by_traffic: BTreeMap::new(), examples: Vec::new() }
    }

    /// Adds a round, which `place` describes.
    pub(crate) fn add(&mut self, judgement: Judgement, traffic: Traffic, place: impl FnOnce() -> String) {
        self.rounds += 1;
        if let Some(forbidden) = judgement.forbidden
            && self.examples.len() < EXAMPLES
        {
            self.examples.push(format!("{forbidden}: {}", place()));
        }
        let counts = self.by_traffic.entry(traffic).or_default();
        for ((class, text), count) in judgement.counts {
            counts.add(class, count);
            *self.outcomes.entry((class, text)).or_default() += count;
        }
    }

    fn report(self) -> TestReport {
        let mut counts = Counts::default();
        self.by_traffic.values().for_each(|part| counts.add_all(part));
        TestReport {
            name: self.test.name,
            asks: self.test.asks,
            participants: self.test.programs.len(),
            rounds: self.rounds,
            counts,
            overlap: counts.overlap(),
            by_traffic: self.by_traffic,
            outcomes: self.outcomes.into_iter().map(|((class, outcome), count)| OutcomeReport { outcome, class, count }).collect(),
            examples: self.examples,
        }
    }
}

impl Report {
    pub(crate) fn new(seed: u64, tallies: Vec<Tally>, meanwhile: Meanwhile, seconds: f64) -> Self {
        let tests: Vec<_> = tallies.into_iter().map(Tally::report).collect();
        let (mut counts, mut by_traffic) = (Counts::default(), BTreeMap::<Traffic, Counts>::new());
        for (traffic, part) in tests.iter().flat_map(|test| &test.by_traffic) {
            counts.add_all(part);
            by_traffic.entry(*traffic).or_default().add_all(part);
        }
        let model = match model::HARDWARE {
            Model::Tso => "total store order",
            _ => "multi-copy atomic",
        };
        Self { seed, model, counts, by_traffic, meanwhile, tests, seconds }
    }

    /// The tests that were run often by one way of travelling without anybody running at the same time as another, and how often.
    pub fn untested(&self) -> Vec<(&'static str, Traffic, u64)> {
        let each = self.tests.iter().flat_map(|test| test.by_traffic.iter().map(|(traffic, counts)| (test.name, *traffic, counts)));
        let idle = each.filter(|(_, _, counts)| {
            counts.iterations - counts.counted >= ENOUGH && counts.interleaved + counts.weak + counts.forbidden == 0
        });
        idle.map(|(name, traffic, counts)| (name, traffic, counts.iterations)).collect()
    }

    /// As a table for a person: a line per test, then what was seen, then what is forbidden and where.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let width = self.tests.iter().map(|test| test.name.len()).max().unwrap_or(0).max(4);
        let _ = writeln!(text, "{:<width$}  participants  rounds  iterations  overlap: one table, tables, moving  weak  forbidden", "test");
        for test in &self.tests {
            let TestReport { name, participants, rounds, counts, .. } = test;
            let [table, tables, moving] = [Traffic::OneTable, Traffic::OneHome, Traffic::Moving].map(|traffic| test.overlap_of(traffic));
            let _ = writeln!(
                text,
                "{name:<width$}  {participants:>12}  {rounds:>6}  {:>10}  {table:>18}  {tables:>6}  {moving:>6}  {:>4}  {:>9}",
                counts.iterations, counts.weak, counts.forbidden
            );
        }
        self.tests.iter().for_each(|test| test.outcomes(&mut text));
        let Meanwhile { cpu_faults, device_faults, migrations, evictions, disturbances } = self.meanwhile;
        text.push('\n');
        for (traffic, counts) in &self.by_traffic {
            let Counts { iterations, weak, forbidden, .. } = counts;
            let overlap = 100.0 * counts.overlap();
            let _ = writeln!(text, "{:<30}  {iterations:>10}  {overlap:>5.1} %  {weak:>4}  {forbidden:>9}", traffic.name());
        }
        let _ = writeln!(
            text,
            "\nmeanwhile {cpu_faults} faults of the CPU, {device_faults} of devices, {migrations} migrations, {evictions} evictions, {disturbances} pages moved by others"
        );
        for (name, traffic, iterations) in self.untested() {
            let _ = writeln!(text, "{name} ({}): not tested, nobody overlapped in {iterations} iterations", traffic.name());
        }
        let Counts { iterations, weak, forbidden, .. } = self.counts;
        let _ = write!(
            text,
            "{iterations} iterations under {}, seed {}, in {:.1} s: {weak} weak, {forbidden} forbidden",
            self.model, self.seed, self.seconds
        );
        text
    }
}

impl TestReport {
    /// The overlap by one way of travelling, for a table.
    fn overlap_of(&self, traffic: Traffic) -> String {
        match self.by_traffic.get(&traffic) {
            Some(counts) if counts.counted == 0 => format!("{:.1} %", 100.0 * counts.overlap()),
            _ => "-".to_owned(),
        }
    }

    fn outcomes(&self, text: &mut String) {
        let _ = writeln!(text, "\n{}: {}", self.name, self.asks);
        let mut plain: Vec<_> = self.outcomes.iter().filter(|o| o.class < Class::Weak).collect();
        plain.sort_by_key(|o| std::cmp::Reverse(o.count));
        let telling = self.outcomes.iter().filter(|o| o.class >= Class::Weak);
        for OutcomeReport { outcome, class, count } in plain.iter().copied().take(SHOWN).chain(telling) {
            let _ = writeln!(text, "{count:>10}  {:<11}  {outcome}", class.name());
        }
        if plain.len() > SHOWN {
            let rest: u64 = plain[SHOWN..].iter().map(|o| o.count).sum();
            let _ = writeln!(text, "{rest:>10}  {} more outcomes, sequential, interleaved or counted", plain.len() - SHOWN);
        }
        for example in &self.examples {
            let _ = writeln!(text, "  forbidden: {example}");
        }
    }
}
