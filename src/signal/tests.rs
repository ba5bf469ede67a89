//! Files of made-up signals: what is written is read, damage is found, what is unfinished goes on.

use super::block::{BlockWriter, Row};
use super::codec::Ranks;
use super::shard::ShardWriter;
use super::*;
use crate::loss::{DrawnId, Said, Sampled, Signal, TopK};
use crate::progress::Silent;
use crate::rng::{Rng, Stream};
use std::fs;
use std::path::Path;

mod mix;

const VOCAB: u32 = 97;

fn rng() -> Rng {
    Rng::new(5, Stream::Corpus)
}

fn header(signal: Kind, tokens: u64) -> Header {
    Header {
        data: DataId { content_hash: "d".into(), tokenizer_hash: "t".into(), tokens },
        teacher: TeacherId {
            name: "some".into(),
            weights: None,
            function: None,
            revision: None,
            dtype: None,
        },
        window: Window { context: 8, stride: 8 },
        signal,
        vocab_size: VOCAB,
        block: 16,
        shard: Shard::ALL,
        positions: (0, 0),
    }
}

fn sampled(planes: &[u32], temperature: f32) -> Kind {
    Kind::Sampled { planes: planes.to_vec(), seed: 3, temperature }
}

/// Ids near 0 most of the time.
fn id(sub: u32, index: u64) -> u32 {
    let u = f64::from(rng().uniform(sub, index));
    ((f64::from(VOCAB)).powf(u) as u32 - 1).min(VOCAB - 1)
}

fn said(position: u64, tau: f32) -> Said {
    // Numbers that sixteen bits hold.
    let at = |sub: u32| (rng().below(sub, position, 1000) as f32) / 128.0;
    let entropy = at(1001);
    Said { nll: at(1000), entropy, entropy_tau: if tau == 1.0 { entropy } else { at(1002) } }
}

/// The draws of a position, plane by plane, and of all together.
fn draws(position: u64, sizes: &[u32]) -> Vec<Vec<DrawnId>> {
    let mut at = 0;
    let counted = |from: u32, to: u32| {
        let mut ids: Vec<u32> = (from..to).map(|draw| id(draw, position)).collect();
        ids.sort_unstable();
        let runs = ids.chunk_by(|a, b| a == b);
        runs.map(|run| DrawnId { id: run[0], count: run.len() as u32 }).collect::<Vec<_>>()
    };
    let planes = sizes.iter().map(|size| {
        at += size;
        counted(at - size, at)
    });
    let mut all: Vec<Vec<DrawnId>> = planes.collect();
    all.push(counted(0, sizes.iter().sum()));
    all
}

fn top(position: u64, k: usize) -> TopK {
    let mut ids: Vec<u32> = (0..VOCAB).collect();
    ids.sort_by_key(|&i| rng().bits(i, position));
    ids.truncate(k);
    ids.sort_unstable();
    let levels: Vec<u32> =
        ids.iter().map(|&i| 1 + (rng().below(i, position, 9) as u32).pow(2)).collect();
    TopK {
        k,
        logp: levels.iter().map(|l| TopK::logp_of(*l)).collect(),
        rest: vec![if k == VOCAB as usize {
            f32::NEG_INFINITY
        } else {
            TopK::rest_of(levels.into_iter())
        }],
        ids,
        said: vec![said(position, 1.0)],
    }
}

/// Writes the shard from block `from` on, up to `until`.
fn write_shard(dir: &Path, header: &Header, until: u64) -> bool {
    let counts: Vec<u64> = (0..VOCAB).map(|i| u64::from(VOCAB - i)).collect();
    let ranks = Ranks::of(if header.signal == Kind::Scores { &[] } else { &counts });
    let mut shard = ShardWriter::open(dir, header.clone(), ranks).unwrap();
    let mut block = BlockWriter::default();
    let (start, end) = header.positions;
    for position in start + shard.done()..end.min(until) {
        let tau = header.signal.temperature().unwrap_or(1.0);
        let said = said(position, tau);
        let ranks = &shard.ranks;
        match &header.signal {
            Kind::Sampled { planes, .. } => {
                let of_planes = draws(position, planes);
                let planes: Vec<Sampled> = of_planes[..planes.len()]
                    .iter()
                    .map(|d| Sampled::of_rows(0, [d.clone()], vec![said]))
                    .collect();
                block.push(header, ranks, said, Row::Draws(&planes, 0)).unwrap();
            }
            Kind::TopK { k, .. } => {
                block.push(header, ranks, said, Row::Top(&top(position, *k as usize), 0)).unwrap();
            }
            Kind::Scores => block.push(header, ranks, said, Row::Nothing).unwrap(),
        }
        if block.len() == header.block as usize || position + 1 == end {
            let positions = block.len() as u32;
            shard.push(&block.take(header), positions).unwrap();
        }
    }
    if until < end {
        shard.flush().unwrap();
        return false;
    }
    shard.finish().unwrap();
    true
}

fn written(signal: Kind, tokens: u64, shards: u32) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for index in 0..shards {
        let header = header(signal.clone(), tokens).for_shard(Shard { index, of: shards });
        write_shard(place.path(), &header, u64::MAX);
    }
    place
}

#[test]
fn draws_are_read_as_they_were_written_in_any_order() {
    for (sizes, tau) in [(&[8, 8, 16, 18][..], 1.0), (&[50], 1.0), (&[1], 2.0), (&[3, 200, 7], 1.0)]
    {
        let place = written(sampled(sizes, tau), 200, 3);
        let positions: Vec<u64> = (0..199).map(|i| i * 37 % 199).collect();
        for planes in 1..=sizes.len() {
            let total: u32 = sizes[..planes].iter().sum();
            let stored = Stored::open(place.path()).unwrap().with_draws(total).unwrap();
            let fetched = stored.fetch(&positions).unwrap();
            let Signal::Sampled(found) = fetched.signal(None).unwrap() else { panic!("draws") };
            assert_eq!((found.draws, found.said.len()), (total, 199));
            for (i, &position) in positions.iter().enumerate() {
                let want = draws(position, &sizes[..planes]).pop().unwrap();
                assert_eq!(found.row(i), want, "{sizes:?}, {planes} planes, position {position}");
                assert_eq!(found.said[i], said(position, tau));
            }
            let some = fetched.signal(Some(&[7, 3, 198])).unwrap();
            let Signal::Sampled(some) = some else { panic!("draws") };
            let rows: Vec<_> = [7, 3, 198].iter().map(|&i| found.row(i)).collect();
            assert_eq!((0..3).map(|i| some.row(i)).collect::<Vec<_>>(), rows);
            assert_eq!(fetched.said(), found.said);
        }
    }
}

#[test]
fn what_was_read_ahead_needs_no_file() {
    let place = written(sampled(&[8], 1.0), 200, 1);
    let stored = Stored::open(place.path()).unwrap();
    let of = |positions: &[u64]| stored.fetch(positions).and_then(|f| f.signal(None));
    let Signal::Sampled(before) = of(&[3, 40]).unwrap() else { panic!("draws") };
    stored.read_ahead(&[3, 40]);
    stored.read_ahead(&[100]);
    let path = place.path().join(Shard::ALL.file());
    fs::write(&path, []).unwrap();
    let Signal::Sampled(after) = of(&[3, 40]).unwrap() else { panic!("draws") };
    assert_eq!(before, after);
    assert!(of(&[100]).is_ok() && of(&[150]).is_err());
    // Of the last two calls.
    stored.read_ahead(&[]);
    assert!(of(&[3]).is_err() && of(&[100]).is_ok());
}

#[test]
fn largest_entries_and_bare_scores_are_read_as_they_were_written() {
    for k in [1, 5, 64, VOCAB as usize] {
        let place = written(Kind::TopK { k: k as u32, temperature: 1.0 }, 50, 1);
        let stored = Stored::open(place.path()).unwrap();
        let Signal::TopK(found) = stored.fetch(&[48, 3]).unwrap().signal(None).unwrap() else {
            panic!("entries")
        };
        let (a, b) = (top(48, k), top(3, k));
        assert_eq!(found.ids, [a.ids, b.ids].concat());
        assert_eq!(found.logp, [a.logp, b.logp].concat());
        assert_eq!(found.rest, [a.rest, b.rest].concat());
    }
    let place = written(Kind::Scores, 50, 1);
    let stored = Stored::open(place.path()).unwrap();
    let fetched = stored.fetch(&[48, 3]).unwrap();
    assert_eq!(fetched.said(), [said(48, 1.0), said(3, 1.0)]);
    assert_eq!(fetched.signal(None).unwrap().rows(), 2);
    let found = inspect(place.path(), &Silent).unwrap();
    assert!(found.bytes_per_token > 4.0 && found.scalar_bytes_per_token == 4.0, "{found:?}");
}

#[test]
fn every_flipped_byte_is_found_and_the_rest_stands() {
    let place = written(sampled(&[4, 4], 1.0), 60, 1);
    let path = place.path().join(Shard::ALL.file());
    let good = fs::read(&path).unwrap();
    assert_eq!(verify(place.path(), &Silent).unwrap().damaged, [] as [String; 0]);
    let mut in_blocks = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(&path, &bad).unwrap();
        let found = verify(place.path(), &Silent);
        let Ok(found) = found else { continue }; // not even a signal any more
        assert_eq!(found.damaged.len(), 1, "byte {at}: {found:?}");
        assert!(found.damaged[0].contains(".signal: "), "{found:?}");
        if found.blocks > 0 {
            in_blocks += 1;
            assert!(found.positions >= 59 - 16, "{found:?}");
            assert!(found.damaged[0].contains("block "), "{found:?}");
            let stored = Stored::open(place.path()).unwrap();
            let readable = (0..59).filter(|&p| stored.fetch(&[p]).is_ok()).count() as u64;
            assert_eq!(readable, found.positions);
        }
    }
    assert!(in_blocks > 400, "{in_blocks}");
    for length in [0, 5, 90, 200, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        let refused = Stored::open(place.path()).unwrap_err().to_string();
        assert!(refused.contains("remove this file"), "{refused}");
    }
    fs::write(&path, [&good[..], &[0]].concat()).unwrap();
    assert!(Stored::open(place.path()).is_err());
}

#[test]
fn what_was_stopped_goes_on_to_the_same_bytes() {
    let kind = sampled(&[4, 4], 1.0);
    let whole = written(kind.clone(), 100, 1);
    let whole = fs::read(whole.path().join(Shard::ALL.file())).unwrap();
    let header = header(kind, 100).for_shard(Shard::ALL);
    for cut in [0, 3, 40, 96, 400, 700, 900, usize::MAX] {
        let place = tempfile::tempdir().unwrap();
        assert!(!write_shard(place.path(), &header, 70));
        let partial = place.path().join("00000-of-00001.signal.partial");
        let bytes = fs::read(&partial).unwrap();
        fs::write(&partial, &bytes[..cut.min(bytes.len())]).unwrap();
        let unfinished = Stored::open(place.path()).unwrap_err().to_string();
        assert!(unfinished.contains("not finished"), "{unfinished}");
        if cut == usize::MAX {
            assert!(unfinished.contains("64 of 99 positions are written"), "{unfinished}");
            assert!(unfinished.contains("--teacher some"), "{unfinished}");
            let found = list(place.path()).unwrap();
            assert_eq!((found[0].positions, found[0].shards), (64, (0, 1)));
            assert_eq!(found[0].kind, "sampled=8 (4 + 4)");
        }
        assert!(write_shard(place.path(), &header, u64::MAX));
        assert_eq!(fs::read(place.path().join(Shard::ALL.file())).unwrap(), whole, "cut at {cut}");
        assert!(!partial.exists());
    }
    // A teacher that has moved has another name, and what was begun keeps its own.
    let place = tempfile::tempdir().unwrap();
    write_shard(place.path(), &header, 70);
    let name = "of another place".to_string();
    let moved = Header { teacher: TeacherId { name, ..header.teacher.clone() }, ..header.clone() };
    assert!(write_shard(place.path(), &moved, u64::MAX));
    assert_eq!(fs::read(place.path().join(Shard::ALL.file())).unwrap(), whole);
    // Another signal's leftovers are nobody's.
    let place = tempfile::tempdir().unwrap();
    write_shard(place.path(), &header, 70);
    let other = Header { signal: sampled(&[4, 5], 1.0), ..header };
    let ranks = Ranks::of(&vec![0; VOCAB as usize]);
    let refused = ShardWriter::open(place.path(), other, ranks).unwrap_err().to_string();
    assert!(refused.contains("sampled=8 (4 + 4) there, sampled=9 (4 + 5) here"), "{refused}");
}

#[test]
fn a_signal_with_parts_missing_says_which() {
    let place = written(sampled(&[8], 1.0), 100, 3);
    let name = Shard { index: 1, of: 3 }.file();
    fs::remove_file(place.path().join(&name)).unwrap();
    let refused = Stored::open(place.path()).unwrap_err().to_string();
    assert!(
        refused.contains("1 of its 3 shards is missing") && refused.contains("--shard 1/3"),
        "{refused}"
    );
    assert_eq!(verify(place.path(), &Silent).unwrap().missing, [name]);
    let listed = list(place.path()).unwrap();
    assert_eq!((listed[0].shards, listed[0].positions), ((2, 3), 99 - 32));
    // A shard under another's name.
    let swapped = written(sampled(&[8], 1.0), 100, 3);
    let at = |index| swapped.path().join(Shard { index, of: 3 }.file());
    fs::copy(at(0), at(1)).unwrap();
    let wrong = "00001-of-00003.signal: holds shard 0/3, and its name is that of 1/3";
    let refused = Stored::open(swapped.path()).unwrap_err().to_string();
    assert!(refused.contains(wrong), "{refused}");
    assert!(verify(swapped.path(), &Silent).unwrap().damaged[0].contains(wrong));
    assert!(list(swapped.path()).unwrap()[0].damage.as_ref().unwrap().contains(wrong));
    let above = tempfile::tempdir().unwrap();
    let below = above.path().join("a");
    fs::rename(swapped.path(), &below).unwrap();
    for place in [above.path(), &below.join(Shard { index: 0, of: 3 }.file())] {
        let refused = Stored::open(place).unwrap_err().to_string();
        assert!(refused.contains("/a is one"), "{refused}");
    }
    let nothing = tempfile::tempdir().unwrap();
    let refused = Stored::open(nothing.path()).unwrap_err().to_string();
    assert!(refused.contains("expected a signal"), "{refused}");
    // Shards of two teachers.
    let other = Header {
        teacher: TeacherId { weights: Some("w".into()), ..header(Kind::Scores, 100).teacher },
        ..header(sampled(&[8], 1.0), 100)
    };
    write_shard(place.path(), &other.for_shard(Shard { index: 1, of: 3 }), u64::MAX);
    let refused = Stored::open(place.path()).unwrap_err().to_string();
    assert!(refused.contains("teacher's weights (SHA-256): w there, unknown here"), "{refused}");
}
