//! Our own stories: short English texts of which much is easy to predict and some is hard.
//!
//! A story is woven from a few threads (things counted, given and lost; something hidden; a
//! promise; a secret word; a way there and back; an animal; a purchase), told of two or three
//! people in one place. What is stated early decides words that come late, so a model must look
//! back, count and copy. Story `index` under `seed` is a pure function of both, and there are far
//! more of them (beyond 10^20) than anyone can memorise.

mod threads;
mod words;

use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::progress::Progress;
use crate::rng::{Rng, Stream};
use std::ops::Range;
use std::path::Path;
use threads::{Ledger, Thread};
use words as w;

/// Draws for one story, numbered as they are made.
struct Draw {
    rng: Rng,
    story: u64,
    next: u32,
}

impl Draw {
    /// Uniform below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.next += 1;
        self.rng.below(self.next, self.story, bound as u64) as usize
    }

    /// Uniform in `low..=high`.
    fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below((high - low + 1) as usize) as u32
    }

    /// True in `percent` of 100 cases.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// `n` different ones.
    fn some<T: Copy>(&mut self, from: &[T], n: usize) -> Vec<T> {
        let mut rest = from.to_vec();
        (0..n.min(from.len())).map(|_| rest.swap_remove(self.below(rest.len()))).collect()
    }

    fn two<T: Copy>(&mut self, from: &[T]) -> (T, T) {
        let i = self.below(from.len());
        let j = (i + 1 + self.below(from.len() - 1)) % from.len();
        (from[i], from[j])
    }
}

/// Someone in a story.
#[derive(Debug, Clone, Copy)]
struct Person {
    name: &'static str,
    he: &'static str,
    him: &'static str,
    his: &'static str,
}

impl Person {
    /// Different people.
    fn cast(d: &mut Draw, n: usize) -> Vec<Self> {
        let names: Vec<(&str, bool)> =
            w::SHE.iter().map(|n| (*n, true)).chain(w::HE.iter().map(|n| (*n, false))).collect();
        let person = |(name, she): (&'static str, bool)| match she {
            true => Self { name, he: "she", him: "her", his: "her" },
            false => Self { name, he: "he", him: "him", his: "his" },
        };
        d.some(&names, n).into_iter().map(person).collect()
    }
}

/// The claims of a story that tests check.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by tests"))]
struct Claims {
    counted: Option<Ledger>,
    /// Coins, price, count, coins left.
    bought: Option<[u32; 4]>,
}

/// Story number `index` of `seed`: three or four paragraphs, about 150 words, no newline at the
/// end.
pub fn story(seed: u64, index: u64) -> String {
    compose(seed, index).0
}

/// Stories in order.
pub fn stories(seed: u64, range: Range<u64>) -> impl Iterator<Item = String> {
    range.map(move |index| story(seed, index))
}

/// Writes stories as JSON lines (field `text`), which `prepare` and `tokenizer train` read.
pub fn write(path: &Path, seed: u64, range: Range<u64>, progress: &dyn Progress) -> Result<()> {
    progress.start("Writing stories", Some(range.end.saturating_sub(range.start)), "stories");
    write_atomic(path, |out| {
        for (n, text) in stories(seed, range).enumerate() {
            if n % 1024 == 0 {
                crate::interrupt::check()?;
            }
            let line = serde_json::json!({ "text": text }).to_string() + "\n";
            out.write_all(line.as_bytes()).map_err(|e| Error::io("write", path, e))?;
            progress.advance(1);
        }
        Ok(())
    })?;
    progress.finish();
    Ok(())
}

fn compose(seed: u64, index: u64) -> (String, Claims) {
    let d = &mut Draw { rng: Rng::new(seed, Stream::Corpus), story: index, next: 0 };
    let people = Person::cast(d, 2);
    let (p, q) = (&people[0], &people[1]);
    let (opening, weather_at_end) = *d.pick(&w::WEATHER);
    let (trait_of_p, trait_of_q) = d.two(&w::TRAITS);

    let mut first = vec![introduce(d, p, q, [trait_of_p, trait_of_q])];
    let (mut claims, mut threads) = (Claims::default(), Vec::new());
    for kind in kinds(d) {
        // Either of the two may carry a thread.
        let (x, y) = if d.chance(50) { (p, q) } else { (q, p) };
        threads.push(match kind {
            0 => {
                let (thread, ledger) = threads::counting(d, x, y);
                claims.counted = Some(ledger);
                thread
            }
            1 => {
                let (thread, sums) = threads::shopping(d, x);
                claims.bought = Some(sums);
                thread
            }
            2 => threads::hiding(d, x, y),
            3 => threads::promise(d, x, y),
            4 => threads::secret(d, x, y),
            5 => threads::journey(d, x),
            _ => threads::pet(d, x),
        });
    }
    first.extend(threads.iter().map(|t| t.setup.clone()));
    let mut paragraphs = vec![first.join(" ")];
    paragraphs.extend(middle(d, &threads, opening, p, q));
    let mut last = vec![evening(d, weather_at_end)];
    // Threads end in an order of their own, so the end can not be read off the beginning.
    let order: Vec<usize> = (0..threads.len()).collect();
    last.extend(d.some(&order, order.len()).into_iter().map(|i| threads[i].end.clone()));
    last.push(farewell(d, p, q, trait_of_p, trait_of_q));
    paragraphs.push(last.join(" "));
    (paragraphs.join("\n\n"), claims)
}

/// Which threads: mostly something to count, and one or two others, all different.
fn kinds(d: &mut Draw) -> Vec<u32> {
    let mut kinds = match d.below(10) {
        0..6 => vec![0],
        6..9 => vec![1],
        _ => vec![],
    };
    let others = 3 - kinds.len() - d.below(2);
    kinds.extend(d.some(&[2, 3, 4, 5, 6], others));
    d.some(&kinds, kinds.len())
}

fn introduce(d: &mut Draw, p: &Person, q: &Person, [tp, tq]: [&str; 2]) -> String {
    let (at, home) = d.pick(&w::HOMES);
    let (role, other) = d.two(&w::ROLES);
    let (pn, qn) = (p.name, q.name);
    match d.below(5) {
        0 => format!(
            "{pn} the {role} and {qn} the {other} lived {at} {home}. {pn} was {tp}, and {qn} was {tq}."
        ),
        1 => format!(
            "{} {home} there lived {} named {pn}, who was {tp}. {} best friend was {qn}, a {tq} {other}.",
            w::capital(at),
            w::a(role),
            w::capital(p.his)
        ),
        2 => format!(
            "{pn} and {qn} grew up together {at} {home}. Everyone knew that {pn} was {tp} and {qn} was {tq}."
        ),
        3 => format!(
            "Once there was {} called {pn}. With {} neighbor {qn}, who was {tq}, {} lived {at} {home}. {pn} was {tp}.",
            w::a(&format!("young {role}")),
            p.his,
            p.he
        ),
        _ => format!(
            "This is a story about {pn}, {} from {home}, and {qn}, {}.",
            w::a(&format!("{tp} {role}")),
            w::a(&format!("{tq} {other}"))
        ),
    }
}

/// The events, in the order of each thread but mixed between threads, in one or two paragraphs.
fn middle(d: &mut Draw, threads: &[Thread], opening: &str, p: &Person, q: &Person) -> Vec<String> {
    let mut queues: Vec<std::slice::Iter<String>> =
        threads.iter().map(|t| t.middle.iter()).collect();
    let (pn, qn) = (p.name, q.name);
    let mut sentences = vec![match d.below(4) {
        0 => format!("{opening} {pn} came to see {qn}."),
        1 => format!("{opening} {pn} and {qn} met at the fountain."),
        2 => format!("{opening} {qn} knocked at {pn}'s door."),
        _ => format!("{opening} the two of them set to work."),
    }];
    loop {
        queues.retain(|q| q.len() > 0);
        if queues.is_empty() {
            break;
        }
        let i = d.below(queues.len());
        sentences.extend(queues[i].next().cloned());
        if d.chance(15) {
            sentences.push(chatter(d, pn, qn));
        }
    }
    if sentences.len() < 3 {
        sentences.push(chatter(d, pn, qn));
    }
    let cut = if sentences.len() > 3 { sentences.len() / 2 } else { sentences.len() };
    let (one, two) = sentences.split_at(cut);
    [one, two].iter().filter(|s| !s.is_empty()).map(|s| s.join(" ")).collect()
}

fn chatter(d: &mut Draw, pn: &str, qn: &str) -> String {
    let (x, y) = if d.chance(50) { (pn, qn) } else { (qn, pn) };
    let topic = d.pick(&w::TOPICS);
    match d.below(8) {
        0 => format!("\"What a day!\" said {x}."),
        1 => format!("{x} laughed, and so did {y}."),
        2 => format!("They rested for a while and talked about {topic}."),
        3 => format!("\"Are you tired?\" asked {x}. \"Not at all,\" said {y}."),
        4 => format!("{x} told {y} a joke about {topic}."),
        5 => format!("\"Do you ever think of {topic}?\" asked {x}, but {y} did not answer."),
        6 => format!("{x} dreamed of {topic} for a moment."),
        _ => format!("\"Let us go on,\" said {x}."),
    }
}

fn evening(d: &mut Draw, weather: &str) -> String {
    match d.below(4) {
        0 => format!("Evening came. {weather}."),
        1 => format!("{weather} when evening came."),
        2 => format!("Later that day they met again. {weather}."),
        _ => format!("Then it grew dark. {weather}."),
    }
}

fn farewell(d: &mut Draw, p: &Person, q: &Person, tp: &str, tq: &str) -> String {
    let (person, other, word) = if d.chance(50) { (p, q, tp) } else { (q, p, tq) };
    let (x, y) = (person.name, other.name);
    match d.below(5) {
        0 => format!("\"Good night, {y},\" said {x}, and went home."),
        1 => format!("\"I have never met anyone so {word},\" said {y} to {x}."),
        2 => format!("{x} smiled, for even {} heart knows a good day.", w::a(word)),
        3 => format!("And {x}, {word} as ever, slept well that night."),
        _ => format!("\"See you tomorrow, {y},\" said {x}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn a_story_is_a_function_of_seed_and_index() {
        assert_eq!(story(1, 7), story(1, 7));
        assert_ne!(story(1, 7), story(2, 7));
        assert_eq!(stories(3, 4..6).collect::<Vec<_>>(), [story(3, 4), story(3, 5)]);
        // Frozen: a change here changes the quickstart's data, its cached teacher and its figures.
        let frozen = "In a valley between two mountains there lived a tailor named Silas, who was curious. \
                      His best friend was Agnes, a serious painter. Silas had brought five walnuts. Agnes had six.";
        assert!(story(0, 0).starts_with(frozen), "{}", story(0, 0));
        assert!(story(0, 0).ends_with("Silas smiled, for even a curious heart knows a good day."));
    }

    #[test]
    fn no_two_of_two_thousand_are_equal_nor_begin_alike() {
        let all: Vec<String> = stories(1, 0..2000).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 2000);
        // First paragraphs alone: only few may coincide even among so many.
        let first: BTreeSet<&str> = all.iter().filter_map(|s| s.split("\n\n").next()).collect();
        assert!(first.len() > 1990, "{}", first.len());
    }

    /// Whether a word occurs as a word.
    fn says(text: &str, word: &str) -> bool {
        text.to_lowercase().split(|c: char| !c.is_alphabetic() && c != '-').any(|w| w == word)
    }

    #[test]
    fn sums_hold_and_are_told() {
        let (mut counted, mut bought) = (0, 0);
        for i in 0..2000 {
            let (text, claims) = compose(5, i);
            if let Some(ledger) = claims.counted {
                counted += 1;
                let mut have = ledger.start.map(|n| n as i32);
                let mut from = 0;
                for step in &ledger.changes {
                    have = [0, 1].map(|i| have[i] + step.change[i]);
                    assert!(have.iter().all(|n| *n >= 0), "{text}");
                    assert!(step.change.iter().all(|c| *c == 0 || c.unsigned_abs() == step.amount));
                    let told = w::number(step.amount);
                    assert!(says(&step.text, &told), "{}", step.text);
                    from +=
                        text[from..].find(&step.text).expect("told, in order") + step.text.len();
                }
                assert_eq!(have, ledger.end.map(|n| n as i32), "{text}");
                let end = text[from..].to_lowercase();
                for n in ledger.end {
                    assert!(
                        says(&end, &w::number(n)) || (n == 0 && says(&end, "none")),
                        "{n}: {text}"
                    );
                }
                assert!(text.contains(&w::quantity(ledger.start[0], ledger.item)), "{text}");
            }
            if let Some([coins, price, count, left]) = claims.bought {
                bought += 1;
                assert_eq!(coins, price * count + left);
                for n in [coins, price, count, left] {
                    assert!(says(&text, &w::number(n)), "{n}: {text}");
                }
            }
        }
        assert!(counted > 1100 && bought > 500, "{counted} {bought}");
    }

    #[test]
    fn the_way_back_is_the_way_there_reversed() {
        let mut found = 0;
        for text in stories(2, 0..300) {
            let ends: Vec<&str> = text.split("took the same way home: ").collect();
            let [before, after] = ends[..] else { continue };
            let back = after.split('.').next().unwrap().replace(" and ", ", ");
            let back: Vec<&str> = back.split(", ").collect();
            let there = |phrase: &str| {
                let way = w::WAYS.iter().find(|way| way.1 == phrase).expect("a known way").0;
                before.find(way).expect("walked before")
            };
            assert!(there(back[0]) > there(back[1]) && there(back[1]) > there(back[2]), "{text}");
            found += 1;
        }
        assert!(found > 10);
    }

    #[test]
    fn shape_spelling_and_vocabulary() {
        let (mut words, mut bytes) = (BTreeMap::<String, u32>::new(), 0);
        for text in stories(1, 0..2000) {
            bytes += text.len();
            assert!((250..2200).contains(&text.len()), "{}: {text}", text.len());
            assert!((3..=4).contains(&text.split("\n\n").count()), "{text}");
            for wrong in [
                "  ",
                "..",
                " .",
                " ,",
                " one coins",
                "One pears",
                " a a",
                " a e",
                " a i",
                " a o",
                "{",
                "}",
                ",,",
            ] {
                assert!(!text.contains(wrong), "{wrong:?}: {text}");
            }
            for paragraph in text.split("\n\n") {
                assert!(paragraph.matches('"').count().is_multiple_of(2), "{paragraph}");
                assert!(
                    paragraph.ends_with(['.', '"'])
                        && paragraph.starts_with(|c: char| c.is_uppercase() || c == '"')
                );
                for sentence in paragraph.replace('"', "").split(". ") {
                    assert!(
                        sentence.starts_with(|c: char| c.is_uppercase()),
                        "{sentence:?} in {paragraph}"
                    );
                }
            }
            for word in text.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()) {
                *words.entry(word.to_lowercase()).or_default() += 1;
            }
        }
        let mean = bytes / 2000;
        assert!((600..1100).contains(&mean), "mean length {mean} bytes");
        assert!((400..900).contains(&words.len()), "{} words", words.len());
        assert!(
            words.values().filter(|n| **n < 5).count() < words.len() / 20,
            "few words are rare"
        );
    }

    #[test]
    fn written_stories_are_read_back() {
        use crate::data::source::{ReadOptions, Source, for_each_batch};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stories.jsonl");
        write(&path, 1, 5..40, &Silent).unwrap();
        let options = ReadOptions { text_field: "text".into(), split: true, skip_bad: false };
        let mut read = Vec::new();
        for_each_batch(&Source::open_all(&[path]).unwrap(), &options, "", &Silent, |batch| {
            read.extend(batch.pieces.into_iter().map(|p| p.text));
            Ok(())
        })
        .unwrap();
        assert_eq!(read, stories(1, 5..40).collect::<Vec<_>>());
    }
}
