use super::*;
use crate::progress::Silent;
use std::fs;

fn origin(vocab_size: u32) -> TokenOrigin {
    TokenOrigin { vocab_size, eot: vocab_size - 1, tokenizer_hash: [7; 32] }
}

fn written(path: &Path, vocab_size: u32, tokens: &[u32]) -> TokenHeader {
    let mut writer = TokenWriter::create(path, origin(vocab_size)).unwrap();
    let (a, b) = tokens.split_at(tokens.len() / 3);
    writer.push(a).unwrap();
    writer.push(b).unwrap();
    writer.end_document();
    writer.add_source_bytes(99);
    writer.finish().unwrap()
}

/// Writes `bytes` with a checksum that fits, so that the later checks are reached.
fn rewrite(path: &Path, mut bytes: Vec<u8>) {
    let check: Hash = Sha256::digest(&bytes[..CHECKED]).into();
    bytes[CHECKED..HEADER_BYTES].copy_from_slice(&check);
    fs::write(path, bytes).unwrap();
}

#[test]
fn both_widths_come_back_and_the_width_follows_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    for (vocab, dtype) in [(65_536, TokenDtype::U16), (65_537, TokenDtype::U32)] {
        let path = folder.path().join("a.bin");
        let tokens: Vec<u32> =
            (0..1000u32).map(|i| (i * 7919) % vocab).chain([vocab - 1]).collect();
        let header = written(&path, vocab, &tokens);
        let file = TokenFile::open(&path).unwrap();
        assert_eq!(file.header(), &header);
        assert_eq!(
            (header.dtype, header.tokens, header.documents, header.source_bytes),
            (dtype, 1001, 1, 99)
        );
        assert_eq!(file.to_vec(0..1001).unwrap(), tokens);
        assert_eq!(file.to_vec(998..1001).unwrap(), tokens[998..]);
        file.verify(&Silent).unwrap();
        assert!(file.read(1000..1002, &mut Vec::new()).is_err());
        let memory = TokenFile::from_tokens(&tokens, origin(vocab), 1, 99).unwrap();
        assert_eq!(
            (memory.header(), memory.to_vec(3..9).unwrap()),
            (&header, tokens[3..9].to_vec())
        );
        memory.verify(&Silent).unwrap();
        let behind = file.behind(&[file.header().eot]).unwrap();
        assert_eq!(behind.to_vec(0..1002).unwrap(), [&[vocab - 1], &tokens[..]].concat());
        assert_eq!((behind.header().source_bytes, behind.verify(&Silent).is_ok()), (99, true));
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = TokenWriter::create(&folder.path().join("a.bin"), origin(10)).unwrap();
    assert!(writer.push(&[3, 10]).unwrap_err().to_string().contains("token id 10"));
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn damage_of_every_kind_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    written(&path, 50, &[1, 2, 3, 4, 5]);
    let good = fs::read(&path).unwrap();
    let message = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        TokenFile::open(&path).unwrap_err().to_string()
    };
    assert!(message(b"").contains("not a token file"));
    assert!(message(b"ESLMTOKEN, but longer").contains("not a token file"));
    assert!(message(&good[..100]).contains("truncated"));
    assert!(message(&good[..good.len() - 1]).contains("266 bytes"));
    assert!(message(&[&good[..], &[0]].concat()).contains("266 bytes"));
    let mut header = good.clone();
    header[90] ^= 1;
    assert!(message(&header).contains("checksum"));
    header = good.clone();
    header[8] = 9;
    assert!(message(&header).contains("format version 9"));
    // A count that times two wraps to the true length.
    header = good.clone();
    header[16..24].copy_from_slice(&(5u64 + (1 << 63)).to_le_bytes());
    rewrite(&path, header);
    assert!(TokenFile::open(&path).unwrap_err().to_string().contains("cut or extended"));
    header = good.clone();
    header[12] = 3;
    rewrite(&path, header);
    assert!(TokenFile::open(&path).unwrap_err().to_string().contains("3 bytes per token"));
    assert!(TokenFile::open(folder.path()).is_err());
    assert!(TokenFile::open(&folder.path().join("none")).is_err());
}

#[test]
fn a_changed_payload_fails_verification_and_foreign_ids_fail_on_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    written(&path, 50, &[1, 2, 3, 4, 5]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER_BYTES + 4] = 60;
    fs::write(&path, bytes).unwrap();
    let file = TokenFile::open(&path).unwrap();
    assert!(file.verify(&Silent).unwrap_err().to_string().contains("content hash"));
    assert!(file.to_vec(1..4).unwrap_err().to_string().contains("token 2 is 60"));
    assert_eq!(file.to_vec(3..5).unwrap(), [4, 5]);
    file.check_vocab(50).unwrap();
    assert!(file.check_vocab(49).is_err(), "the changed byte");
    written(&path, 50, &[1, 2, 3, 48]);
    let file = TokenFile::open(&path).unwrap();
    file.check_vocab(49).unwrap();
    assert!(file.check_vocab(48).unwrap_err().to_string().contains("token 3 is id 48"));
}
