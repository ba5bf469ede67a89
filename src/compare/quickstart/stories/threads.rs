//! The threads a story is woven from. Each states something early and depends on it late.

use super::words::{self as w, Item, a, capital, list, number, quantity};
use super::{Draw, Person};

/// What a thread contributes: sentences for the beginning, paragraphs for the middle, sentences for
/// the end.
#[derive(Debug, Default)]
pub struct Thread {
    pub setup: String,
    pub middle: Vec<String>,
    pub end: String,
}

/// One change of the counts of the two holders, and the sentence that tells it.
#[derive(Debug, Clone)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by tests"))]
pub struct Change {
    pub text: String,
    pub amount: u32,
    pub change: [i32; 2],
}

/// What the counting thread claims, for tests.
#[derive(Debug, Clone)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by tests"))]
pub struct Ledger {
    pub start: [u32; 2],
    pub changes: Vec<Change>,
    pub end: [u32; 2],
    pub item: Item,
}

/// Two people own some of a thing; it is given, found and lost; at the end they count.
pub fn counting(d: &mut Draw, p: &Person, q: &Person) -> (Thread, Ledger) {
    let item = *d.pick(&w::ITEMS);
    let start = [d.between(4, 12), d.between(0, 8)];
    let (n, m) = (start[0], start[1]);
    let (pn, qn, items) = (p.name, q.name, item.1);
    let second = if m == 0 { format!("{qn} had none") } else { format!("{qn} had {}", number(m)) };
    let setup = match d.below(4) {
        0 => format!("{pn} had {}, and {second}.", quantity(n, item)),
        1 => format!("In {} bag {pn} carried {}; {second}.", p.his, quantity(n, item)),
        2 => format!("{pn} had brought {}. {}.", quantity(n, item), second),
        _ => format!("{pn} owned {} and was proud of them, while {second}.", quantity(n, item)),
    };
    let mut have = start;
    let mut changes = Vec::new();
    for _ in 0..d.between(2, 4) {
        changes.push(change(d, [p, q], &mut have, item));
    }
    let mut thread = Thread { setup, ..Thread::default() };
    let mut shown = start;
    for c in &changes {
        shown = [0, 1].map(|i| (shown[i] as i32 + c.change[i]) as u32);
        let mut text = c.text.clone();
        if d.chance(40) {
            let i = usize::from(c.change[0] == 0);
            let (name, n) = ([pn, qn][i], shown[i]);
            text += &match (n, d.below(3)) {
                (0, _) => format!(" Now {name} had no {items} left."),
                (_, 0) => format!(" Now {name} had {}.", quantity(n, item)),
                (_, 1) => format!(" That made {} for {name}.", number(n)),
                _ => format!(" \"I have {} now,\" said {name}.", number(n)),
            };
        }
        thread.middle.push(text);
    }
    thread.end = totals(d, p, q, have, item);
    (thread, Ledger { start, changes, end: have, item })
}

fn change(d: &mut Draw, people: [&Person; 2], have: &mut [u32; 2], item: Item) -> Change {
    let from = if have[0] > 0 && (have[1] == 0 || d.chance(60)) { 0 } else { 1 };
    let to = 1 - from;
    let (x, y) = (people[from].name, people[to].name);
    let most = have[from].min(5);
    let kind = if most == 0 { 1 } else { d.below(4) };
    let mut change = [0i32; 2];
    let (amount, text) = match kind {
        // given to the other
        0 | 3 => {
            let k = d.between(1, most);
            change[from] = -(k as i32);
            change[to] = k as i32;
            let (them, some) = (if k == 1 { "it" } else { "them" }, quantity(k, item));
            let text = match d.below(5) {
                0 => format!("{x} gave {y} {some}."),
                1 => format!("{x} counted out {some} and handed {them} to {y}."),
                2 => format!(
                    "\"Take {} of my {},\" said {x}, and {y} put {them} away.",
                    number(k),
                    item.1
                ),
                3 => format!("{y} asked for {some}, and {x} handed {them} over."),
                _ => format!("\"May I have {some}?\" asked {y}. \"Of course,\" said {x}."),
            };
            (k, text)
        }
        // found
        1 => {
            let k = d.between(1, 4);
            change[from] = k as i32;
            let more = format!("{} more {}", number(k), if k == 1 { item.0 } else { item.1 });
            let place = d.pick(&w::FIND_PLACES);
            let text = match d.below(4) {
                0 => format!("{x} found {more} {place}."),
                1 => format!(
                    "{x} looked around, and {place} there {} {more} for {}.",
                    be(k),
                    people[from].him
                ),
                2 => format!("Then a neighbor brought {x} {more}."),
                _ => format!(
                    "\"Look!\" cried {x}. {} lay {place}, and {} kept {}.",
                    capital(&more),
                    people[from].he,
                    it(k)
                ),
            };
            (k, text)
        }
        // lost
        _ => {
            let k = d.between(1, most.min(4));
            change[from] = -(k as i32);
            let some = quantity(k, item);
            let text = match d.below(4) {
                0 if item.2 => format!("{x} was hungry and ate {some}."),
                0 | 1 => format!("On the way {x} dropped {some} into the river."),
                2 => format!("A {} came and stole {some} from {x}.", d.pick(&w::THIEVES)),
                _ => format!("{x} gave {some} to a traveler."),
            };
            (k, text)
        }
    };
    *have = [0, 1].map(|i| (have[i] as i32 + change[i]) as u32);
    Change { text, amount, change }
}

fn be(n: u32) -> &'static str {
    if n == 1 { "was" } else { "were" }
}

fn it(n: u32) -> &'static str {
    if n == 1 { "it" } else { "them" }
}

fn totals(d: &mut Draw, p: &Person, q: &Person, [n, m]: [u32; 2], item: Item) -> String {
    let (pn, qn, items) = (p.name, q.name, item.1);
    let bare = |n: u32| if n == 0 { "none".to_string() } else { number(n) };
    match d.below(4) {
        0 => format!("In the end {pn} had {} and {qn} had {}.", quantity(n, item), bare(m)),
        1 => format!(
            "\"How many {items} do you have now?\" asked {qn}. \"{},\" said {pn}. \"And you?\" \"{},\" said {qn}.",
            capital(&bare(n)),
            capital(&bare(m))
        ),
        2 => {
            format!(
                "They counted the {items}: {} for {pn} and {} for {qn}, {} in all.",
                bare(n),
                bare(m),
                bare(n + m)
            )
        }
        _ => format!("So {qn} was left with {}, and {pn} with {}.", quantity(m, item), bare(n)),
    }
}

/// Something is hidden, perhaps moved, and fetched from where it really is.
pub fn hiding(d: &mut Draw, p: &Person, q: &Person) -> Thread {
    let thing = format!("{} {}", d.pick(&w::OBJECT_KINDS), d.pick(&w::OBJECTS));
    let (first, second) = d.two(&w::HIDING_PLACES);
    let (pn, qn) = (p.name, q.name);
    let setup = match d.below(3) {
        0 => format!("{pn} owned {} and kept it {first}.", a(&thing)),
        1 => format!("Before leaving the house, {pn} hid {} {first}.", a(&thing)),
        _ => format!("There was also {}, which {pn} had hidden {first}.", a(&thing)),
    };
    let mut thread = Thread { setup, ..Thread::default() };
    let place = if d.chance(55) {
        thread.middle.push(match d.below(3) {
            0 => format!("While nobody was watching, {qn} took the {thing} and put it {second}."),
            1 => {
                format!("{qn} thought that the {thing} was not safe, so {} put it {second}.", q.he)
            }
            _ => format!(
                "\"Someone will find the {thing},\" said {qn}, and hid it {second} instead."
            ),
        });
        second
    } else {
        first
    };
    thread.end = match d.below(3) {
        0 if place == second => format!(
            "{pn} looked for the {thing} {first}, but it was gone. \"It is {second},\" said {qn}, and there it was.",
        ),
        0 => format!("The {thing} was still {place}, and {pn} was glad of it."),
        1 => format!(
            "\"Where is the {thing}?\" asked {}. It was {place}.",
            if place == second { pn } else { qn }
        ),
        _ => format!("At last the {thing} was taken out from where it lay, {place}."),
    };
    thread
}

/// A promise is made and kept.
pub fn promise(d: &mut Draw, p: &Person, q: &Person) -> Thread {
    let (todo, done) = *d.pick(&w::PROMISES);
    let (pn, qn) = (p.name, q.name);
    let setup = match d.below(3) {
        0 => format!("{pn} had promised {qn} to {todo} before dark."),
        1 => format!("\"Will you {todo} today?\" asked {qn}. \"I promise,\" said {pn}."),
        _ => format!("\"I will {todo} tonight,\" {pn} told {qn}."),
    };
    let end = match d.below(3) {
        0 => format!("{pn} had not forgotten {} word and {done}.", p.his),
        1 => format!("Before dark {pn} {done}, as {} had promised {qn}.", p.he),
        _ => format!("Then {pn} {done}, and {qn} was happy."),
    };
    Thread { setup, middle: Vec::new(), end }
}

/// A secret word is told and asked for.
pub fn secret(d: &mut Draw, p: &Person, q: &Person) -> Thread {
    let word = d.pick(&w::SECRETS);
    let (pn, qn) = (p.name, q.name);
    let setup = match d.below(3) {
        0 => format!("{pn} and {qn} had a secret word, and the word was \"{word}\"."),
        1 => format!("\"Our secret word is {word},\" {pn} whispered to {qn}."),
        _ => {
            format!("To enter the cellar one had to say \"{word}\", which only {pn} and {qn} knew.")
        }
    };
    let end = match d.below(3) {
        0 => {
            format!(
                "Someone knocked at the door. \"What is the word?\" asked {pn}. \"{},\" said {qn}.",
                capital(word)
            )
        }
        1 => {
            format!("{qn} stood at the cellar door and said \"{word}\", and {pn} let {} in.", q.him)
        }
        _ => format!("\"Do you still know our word?\" asked {qn}. \"It is {word},\" said {pn}."),
    };
    Thread { setup, middle: Vec::new(), end }
}

/// A way is walked there, and back in reverse.
pub fn journey(d: &mut Draw, p: &Person) -> Thread {
    let goal = d.pick(&w::GOALS);
    let ways = d.some(&w::WAYS, 3);
    let pn = p.name;
    let there: Vec<&str> = ways.iter().map(|way| way.0).collect();
    let back: Vec<&str> = ways.iter().rev().map(|way| way.1).collect();
    let setup = match d.below(2) {
        0 => format!("{pn} had to go to {goal}."),
        _ => format!("There was something to fetch from {goal}, and it was {pn} who had to go."),
    };
    let go = match d.below(3) {
        0 => format!("{pn} walked {} until {} came to {goal}.", list(&there), p.he),
        1 => format!("The way to {goal} went {}, and {pn} did not hurry.", list(&there)),
        _ => format!(
            "First {pn} went {}, then {}, then {}, and there was {goal}.",
            there[0], there[1], there[2]
        ),
    };
    let end = match d.below(3) {
        0 => format!("From {goal} {pn} came home {}.", list(&back)),
        1 => format!(
            "On the way back from {goal} {pn} went {}, then {}, then {}.",
            back[0], back[1], back[2]
        ),
        _ => format!("{pn} took the same way home: {}.", list(&back)),
    };
    Thread { setup, middle: vec![go], end }
}

/// An animal with a name and a habit.
pub fn pet(d: &mut Draw, p: &Person) -> Thread {
    let (animal, color, name) = (d.pick(&w::ANIMALS), d.pick(&w::COLORS), d.pick(&w::PET_NAMES));
    let (likes, doing) = d.pick(&w::HABITS);
    let pn = p.name;
    let setup = match d.below(3) {
        0 => format!(
            "{pn} had {} called {name}, who liked to {likes}.",
            a(&format!("{color} {animal}"))
        ),
        1 => format!(
            "With {pn} lived {name}, {} that loved to {likes}.",
            a(&format!("{color} {animal}"))
        ),
        _ => format!("{pn}'s {animal} was {color} and was called {name}. It liked to {likes}."),
    };
    let middle = d.chance(40).then(|| match d.below(2) {
        0 => format!("{name} the {animal} watched all this in silence."),
        _ => format!("Nobody noticed that {name} had gone away."),
    });
    let end = match d.below(3) {
        0 => format!("And the {color} {animal}? {name} was {doing}."),
        1 => format!("\"Where is {name}?\" asked {pn}. The {animal} was {doing}, of course."),
        _ => format!("They found {name} {doing}, as {pn} had expected of such {}.", a(animal)),
    };
    Thread { setup, middle: middle.into_iter().collect(), end }
}

/// Something is bought: a product and a difference.
pub fn shopping(d: &mut Draw, p: &Person) -> (Thread, [u32; 4]) {
    let (one, many) = *d.pick(&w::GOODS);
    let (price, count) = (d.between(2, 5), d.between(2, 5));
    let spent = price * count;
    let coins = spent + d.between(0, 9);
    let left = coins - spent;
    let (pn, coin) = (p.name, ("coin", "coins", false));
    let setup = match d.below(2) {
        0 => format!("In {} purse {pn} had {}.", p.his, quantity(coins, coin)),
        _ => format!("{pn} had saved {}.", quantity(coins, coin)),
    };
    let buy = match d.below(3) {
        0 => format!(
            "At the shop each {one} cost {}. {pn} bought {} {many} and paid {}.",
            quantity(price, coin),
            number(count),
            number(spent)
        ),
        1 => format!(
            "\"Each {one} costs {},\" said the merchant. \"Then {} {many} cost {},\" said {pn}, and paid.",
            quantity(price, coin),
            number(count),
            number(spent)
        ),
        _ => format!(
            "{pn} bought {} {many}, and since each {one} cost {}, it came to {}.",
            number(count),
            quantity(price, coin),
            quantity(spent, coin)
        ),
    };
    let end = match if left == 0 { 0 } else { d.below(2) } {
        0 => format!("{pn} had {} left and {} new {many}.", quantity(left, coin), number(count)),
        _ => format!(
            "There {} {} in {}'s purse, next to the {} {many}.",
            be(left),
            quantity(left, coin),
            pn,
            number(count)
        ),
    };
    (Thread { setup, middle: vec![buy], end }, [coins, price, count, left])
}
