//! Metrics of a run: lines, rows and events say the same, also after a resumption; events are decoded by a reader of its own.

use super::*;
use std::collections::BTreeMap;

fn step(step: u64, loss: f32) -> Event {
    Event::Step {
        step,
        loss,
        smoothed_loss: 1.5,
        lr: 1e-3,
        grad_norm: 0.5,
        update_norm: Some(0.25),
        loss_scale: None,
        skipped: None,
        rewards: None,
        experts: None,
        tokens: 32 * step,
        tokens_per_second: 100.0,
        roofline: None,
        mfu: None,
        data_wait: 0.25,
        idle: None,
    }
}

fn feed(log: &mut RunLog, from: u64, to: u64, loss: f32) {
    for n in from..=to {
        assert_eq!(log.event(&step(n, loss + n as f32)), None);
        if n % 2 == 0 {
            assert_eq!(log.event(&Event::Validation { step: n, loss: 1.0, rewards: None }), None);
            log.event(&Event::Sample { step: n, text: format!("Ein Märchen {n}") });
        }
    }
}

/// A field of a protobuf message.
#[derive(Debug, Clone, PartialEq)]
enum Field {
    Integer(u64),
    Bytes(Vec<u8>),
    Fixed(f64),
}

/// A message's fields, by a decoder that shares nothing with the writer.
fn decode(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if *first < 0x80 {
                break;
            }
        }
        value
    }
    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (now, rest) = bytes.split_at(n);
        *bytes = rest;
        now
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Integer(varint(&mut bytes)),
            1 => Field::Fixed(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let n = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, n).to_vec())
            }
            5 => Field::Fixed(f64::from(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap()))),
            wire => panic!("wire type {wire}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn message(fields: &[(u64, Field)], number: u64) -> Vec<(u64, Field)> {
    match &fields.iter().find(|(n, _)| *n == number).unwrap().1 {
        Field::Bytes(bytes) => decode(bytes),
        other => panic!("{other:?}"),
    }
}

fn text(fields: &[(u64, Field)], number: u64) -> String {
    match &fields.iter().find(|(n, _)| *n == number).unwrap().1 {
        Field::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Scalars by tag, with their steps, and texts.
type Told = (BTreeMap<String, Vec<(u64, f64)>>, Vec<String>);

/// Every record of the folder's event file, sums checked.
fn events(folder: &Path) -> Told {
    let is_events = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents.");
    let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(is_events).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = std::fs::read(&files[0]).unwrap();
    let (mut rest, mut told, mut first) = (bytes.as_slice(), Told::default(), true);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let sum = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(sum(&rest[8..]), masked(&rest[..8]));
        let record = &rest[12..12 + length];
        assert_eq!(sum(&rest[12 + length..]), masked(record));
        rest = &rest[16 + length..];
        let event = decode(record);
        if std::mem::take(&mut first) {
            assert_eq!(text(&event, 3), "brain.Event:2");
            continue;
        }
        let step = match event.iter().find(|(n, _)| *n == 2) {
            Some((_, Field::Integer(step))) => *step,
            other => panic!("{other:?}"),
        };
        for (number, value) in message(&event, 5) {
            let Field::Bytes(value) = value else { panic!("{value:?}") };
            let value = decode(&value);
            assert_eq!(number, 1);
            match value.iter().find(|(n, _)| *n == 2) {
                Some((_, Field::Fixed(x))) => told.0.entry(text(&value, 1)).or_default().push((step, *x)),
                _ => {
                    let plugin = message(&message(&value, 9), 1);
                    assert_eq!((text(&value, 1).as_str(), text(&plugin, 1).as_str()), ("sample", "text"));
                    let tensor = message(&value, 8);
                    assert_eq!(tensor[0], (1, Field::Integer(7)));
                    told.1.push(text(&tensor, 8));
                }
            }
        }
    }
    told
}

#[test]
fn sums_are_those_of_the_standard() {
    // RFC 3720, B.4.
    let ascending: Vec<u8> = (0..32).collect();
    for (bytes, sum) in [(&[0u8; 32][..], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (&ascending, 0x46dd_794e)] {
        assert_eq!(crc32c(bytes), sum);
    }
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn a_resumed_run_goes_on_without_doubles() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut log = RunLog::open(folder, 0, 77).unwrap();
    feed(&mut log, 1, 7, 0.0);
    drop(log);
    // A process that was killed in the middle of a line.
    let path = folder.join(JSONL);
    let torn = std::fs::read_to_string(&path).unwrap() + "{\"step\":8,\"lo";
    std::fs::write(&path, torn).unwrap();
    let mut log = RunLog::open(folder, 4, 77).unwrap();
    let stall = Event::Checkpoint { step: 4, folder: "c".into(), bytes: 9, stall: 0.5, seconds: 1.0 };
    assert_eq!(log.event(&stall), None);
    feed(&mut log, 5, 9, 100.0);
    drop(log);

    let lines = read_metrics(folder).unwrap();
    let losses: Vec<(u64, f64)> = lines.iter().filter_map(|m| Some((m.step, m.loss?))).collect();
    let expected: Vec<(u64, f64)> = (1..=9).map(|n| (n, n as f64 + if n > 4 { 100.0 } else { 0.0 })).collect();
    assert_eq!(losses, expected);
    let (scalars, texts) = events(folder);
    assert_eq!(scalars["train/loss"], expected);
    assert_eq!(scalars["validation/loss"], [2, 4, 6, 8].map(|n| (n, 1.0)));
    assert_eq!(scalars["memory/device_bytes"], [2, 4, 6, 8].map(|n| (n, 77.0)));
    assert_eq!(scalars["speed/checkpoint_stall"], [(4, 0.5)]);
    assert_eq!(texts, [2, 4, 6, 8].map(|n| format!("Ein Märchen {n}")));

    let csv = std::fs::read_to_string(folder.join(CSV)).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 1 + 9);
    let column = |name: &str| rows[0].iter().position(|n| *n == name).unwrap();
    assert!(rows.iter().all(|row| row.len() == METRICS.len() + 1));
    assert_eq!(rows[4][column("validation_loss")], "1");
    assert_eq!(rows[4][column("checkpoint_stall")], "0.5");
    assert_eq!(rows[5][..2], ["5", "105"]);
    assert_eq!(rows[5][column("validation_loss")], "");
    assert!(read_metrics(&folder.join("elsewhere")).unwrap().is_empty());
}

#[test]
fn a_fresh_run_begins_empty() {
    let folder = tempfile::tempdir().unwrap();
    feed(&mut RunLog::open(folder.path(), 0, 1).unwrap(), 1, 3, 0.0);
    feed(&mut RunLog::open(folder.path(), 0, 1).unwrap(), 1, 2, 0.0);
    assert_eq!(events(folder.path()).0["train/loss"].len(), 2);
    assert_eq!(read_metrics(folder.path()).unwrap().iter().filter(|m| m.loss.is_some()).count(), 2);
}

/// JSON has no word for it: where the file is read again to go on, a step without a loss is a step all the same.
#[test]
fn a_step_whose_loss_is_no_number_keeps_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = RunLog::open(folder.path(), 0, 1).unwrap();
    feed(&mut log, 1, 2, 0.0);
    feed(&mut log, 3, 3, f32::NAN);
    drop(log);
    drop(RunLog::open(folder.path(), 3, 1).unwrap());
    let csv = std::fs::read_to_string(folder.path().join(CSV)).unwrap();
    let steps: Vec<&str> = csv.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(steps, ["1", "2", "3"], "{csv}");
}

#[test]
fn a_log_that_cannot_be_written_ends_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = RunLog::open(folder.path(), 0, 1).unwrap();
    if let Some(open) = &mut log.open {
        // Opened for reading only: every write fails.
        open.jsonl = File::open(folder.path().join(JSONL)).unwrap();
    }
    let said = log.event(&step(1, 1.0)).unwrap();
    assert!(
        said.starts_with("metrics cannot be written (") && said.ends_with("training goes on without them"),
        "{said}"
    );
    assert_eq!(log.event(&step(2, 1.0)), None, "said once");
}

/// A rollback whose files cannot be written anew ends the log, and not the run.
#[test]
fn a_log_that_cannot_go_back_ends_alone() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let mut log = RunLog::open(&run, 0, 1).unwrap();
    feed(&mut log, 1, 3, 0.0);
    assert_eq!(log.back_to(2), None);
    std::fs::remove_dir_all(&run).unwrap();
    std::fs::write(&run, "a file in the folder's place").unwrap();
    let said = log.back_to(1).unwrap();
    let (begins, ends) = ("metrics cannot be written (", "training goes on without them");
    assert!(said.starts_with(begins) && said.ends_with(ends), "{said}");
    assert_eq!(log.event(&step(2, 1.0)), None, "said once");
}
