//! An event file for TensorBoard: records of TensorFlow's TFRecord form (length, masked CRC-32C, bytes, masked CRC-32C),
//! each a protobuf `Event`, of whose fields (tensorflow/core/util/event.proto, framework/summary.proto) we write the few
//! that scalars and texts need.

use super::metrics::{METRICS, Metrics};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What every event file's name begins with.
const PREFIX: &str = "events.out.tfevents.";
/// And ours end.
const ENDING: &str = ".danlu";

/// CRC-32C (Castagnoli), bit by bit reversed, as RFC 3720 has it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// The sum as records have it: rotated and shifted, since a sum of bytes that hold their own sum says little.
pub fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn key(self, field: u32, wire: u32) -> Self {
        self.varint(u64::from(field << 3 | wire))
    }

    fn integer(self, field: u32, value: u64) -> Self {
        self.key(field, 0).varint(value)
    }

    fn double(self, field: u32, value: f64) -> Self {
        let mut this = self.key(field, 1);
        this.0.extend(value.to_le_bytes());
        this
    }

    fn float(self, field: u32, value: f32) -> Self {
        let mut this = self.key(field, 5);
        this.0.extend(value.to_le_bytes());
        this
    }

    fn bytes(self, field: u32, bytes: &[u8]) -> Self {
        let mut this = self.key(field, 2).varint(bytes.len() as u64);
        this.0.extend(bytes);
        this
    }

    fn message(self, field: u32, message: Message) -> Self {
        self.bytes(field, &message.0)
    }
}

/// `DT_STRING` of tensorflow/core/framework/types.proto.
const STRING: u64 = 7;

/// Whether a file of this name is one of ours: other programs' begin alike.
pub fn is_event_file(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(ENDING)
}

/// An event file.
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// A new file in a run's folder, in place of those of Danlu's that are there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(folder: &Path) -> Result<EventFile> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let path = folder.join(format!("{PREFIX}{}{ENDING}", wall as u64));
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if is_event_file(&entry.file_name().to_string_lossy()) {
                std::fs::remove_file(entry.path()).map_err(|e| Error::io("remove", entry.path(), e))?;
            }
        }
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut events = EventFile { file };
        let version = Message::default().double(1, wall).bytes(3, b"brain.Event:2");
        events.record(&version.0).map_err(|e| Error::io("write", &path, e))?;
        Ok(events)
    }

    pub(super) fn line(&mut self, metrics: &Metrics) -> io::Result<()> {
        let mut summary = Message::default();
        for metric in METRICS {
            if let Some(value) = (metric.get)(metrics) {
                let value = Message::default().bytes(1, metric.tag.as_bytes()).float(2, value as f32);
                summary = summary.message(1, value);
            }
        }
        for (name, value) in &metrics.tasks {
            let tag = format!("tasks/{}", name.replace('.', "/"));
            summary = summary.message(1, Message::default().bytes(1, tag.as_bytes()).float(2, *value as f32));
        }
        if let Some(sample) = &metrics.sample {
            let shape = Message::default().message(2, Message::default().integer(1, 1));
            let tensor = Message::default().integer(1, STRING).message(2, shape).bytes(8, sample.as_bytes());
            let plugin = Message::default().message(1, Message::default().bytes(1, b"text"));
            let value = Message::default().bytes(1, b"sample").message(8, tensor).message(9, plugin);
            summary = summary.message(1, value);
        }
        let event = Message::default().double(1, metrics.wall).integer(2, metrics.step).message(5, summary);
        self.record(&event.0)
    }

    fn record(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = (bytes.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length).to_le_bytes());
        record.extend(bytes);
        record.extend(masked(bytes).to_le_bytes());
        // At once, so that a reader sees whole records.
        self.file.write_all(&record)
    }
}
