//! The buffer for output of a command in the background: the newest frames within a number of bytes.
//! Out of scope: the command, waiting.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::frames;
use crate::guest::agent::output::Chunk;
use crate::guest::protocol::{Encoding, Frame, FrameKind};

/// What a frame takes in addition to its data, in bytes: a command that writes single bytes does not exceed the budget.
const OVERHEAD: usize = 96;

/// The maximum size of the data in one [`Batch`], in bytes.
const BATCH: usize = 64 << 10;

#[derive(Debug)]
struct Entry {
    at: Timestamp,
    kind: FrameKind,
    data: Box<[u8]>,
    /// The number of bytes that were written before.
    offset: u64,
}

/// The buffer. Ids begin with 2: the frame `started` has the id 1.
#[derive(Debug)]
pub struct Ring {
    encoding: Encoding,
    budget: usize,
    used: usize,
    entries: VecDeque<Entry>,
    /// The id of the next entry.
    next: u64,
    /// Bytes of output.
    pub written: u64,
    /// Bytes of output that are no longer in the buffer.
    pub dropped: u64,
}

/// The next frames for a reader.
#[derive(Debug, Default)]
pub struct Batch {
    /// In their order; the first may be `gap`.
    pub frames: Vec<Frame>,
    /// Where to continue.
    pub next: u64,
    /// The number of bytes that were written before `next`, if it is known.
    pub offset: Option<u64>,
}

impl Ring {
    /// An empty buffer for `budget` bytes.
    pub fn new(budget: usize, encoding: Encoding) -> Self {
        Self {
            encoding,
            budget,
            used: 0,
            entries: VecDeque::new(),
            next: 2,
            written: 0,
            dropped: 0,
        }
    }

    /// The id of the next frame.
    pub fn next_id(&self) -> u64 {
        self.next
    }

    /// The used part of the budget, in bytes.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Adds output, and drops the oldest until all is within the budget.
    pub fn push(&mut self, chunk: &Chunk, at: Timestamp) {
        self.used += chunk.data.len() + OVERHEAD;
        self.entries.push_back(Entry {
            at,
            kind: chunk.kind,
            // A copy: the bytes are part of a larger allocation.
            data: chunk.data.as_ref().into(),
            offset: self.written,
        });
        self.written += length(&chunk.data);
        self.next += 1;
        while self.used > self.budget
            && let Some(entry) = self.entries.pop_front()
        {
            self.used -= entry.data.len() + OVERHEAD;
            self.dropped += length(&entry.data);
        }
    }

    /// Frames from an id on, at most [`BATCH`] bytes and one frame more. `offset`: the number of bytes before `from`, if it is known; without
    /// it the number of bytes of a gap is known only from the start.
    pub fn read(&self, from: u64, offset: Option<u64>) -> Batch {
        let first = self.next - self.entries.len() as u64;
        let mut batch = Batch {
            next: from.max(2),
            offset: if from <= 2 { Some(0) } else { offset },
            frames: Vec::new(),
        };
        if batch.next < first {
            batch.frames.push(self.gap(&batch, first));
            batch.next = first;
            batch.offset = Some(self.dropped);
        }
        let skipped = usize::try_from(batch.next - first).unwrap_or(usize::MAX);
        let mut size = 0;
        for entry in self.entries.iter().skip(skipped) {
            let mut frame = frames::output(entry.kind, &entry.data, self.encoding, entry.at);
            frame.id = Some(batch.next);
            batch.frames.push(frame);
            batch.next += 1;
            batch.offset = Some(entry.offset + length(&entry.data));
            size += entry.data.len();
            if size >= BATCH {
                break;
            }
        }
        batch
    }

    /// The frame for what was dropped between `batch` and `first`. Its id is that of the last dropped frame, so that the next one follows.
    fn gap(&self, batch: &Batch, first: u64) -> Frame {
        let at = self
            .entries
            .front()
            .map_or(Timestamp::UNIX_EPOCH, |entry| entry.at);
        let mut gap = Frame::new(FrameKind::Gap, at);
        gap.id = Some(first - 1);
        gap.dropped_frames = Some(first - batch.next);
        gap.dropped_bytes = batch.offset.map(|offset| self.dropped - offset);
        gap
    }
}

fn length(data: &[u8]) -> u64 {
    data.len() as u64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn push(ring: &mut Ring, data: Vec<u8>) {
        let chunk = Chunk {
            kind: FrameKind::Stdout,
            data: Bytes::from(data),
        };
        ring.push(&chunk, Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn a_reader_that_resumes_does_not_know_the_bytes_of_a_gap_and_one_from_the_start_does() {
        let mut ring = Ring::new(3 * (OVERHEAD + 10), Encoding::Text);
        for _ in 0..10 {
            push(&mut ring, vec![b'x'; 10]);
        }
        let all = ring.read(0, None);
        let gap = &all.frames[0];
        assert_eq!((gap.kind, gap.id), (FrameKind::Gap, Some(8)));
        assert_eq!((gap.dropped_frames, gap.dropped_bytes), (Some(7), Some(70)));
        assert_eq!((all.frames.len(), all.next), (4, 12));
        let resumed = ring.read(4, None);
        assert_eq!(resumed.frames[0].dropped_frames, Some(5));
        assert_eq!(resumed.frames[0].dropped_bytes, None);
        assert_eq!(ring.read(12, None).frames, []);
        assert_eq!(ring.read(99, None).next, 99);
    }

    proptest! {
        /// Whatever is written and read in between: ids have no hole but for gaps, the bytes of frames and gaps are all bytes, and the memory
        /// is within the budget.
        #[test]
        fn frames_and_gaps_are_all_that_was_written(
            steps in prop::collection::vec((0_usize..300, any::<bool>()), 0..100),
            budget in 500_usize..5000,
        ) {
            let mut ring = Ring::new(budget, Encoding::Text);
            let (mut next, mut offset, mut seen) = (1, None, 0);
            let mut drain = |ring: &Ring| {
                loop {
                    let batch = ring.read(next, offset);
                    for frame in &batch.frames {
                        seen += frame.dropped_bytes.unwrap_or(0);
                        seen += frame.stdout.as_ref().map_or(0, |text| text.len() as u64);
                    }
                    let ids: u64 = batch.frames.iter().map(|frame| frame.dropped_frames.unwrap_or(1)).sum();
                    assert_eq!(batch.next - next.max(2), ids);
                    next = batch.next;
                    offset = batch.offset;
                    if batch.frames.is_empty() {
                        break;
                    }
                }
                assert_eq!(seen, ring.written);
            };
            for (size, read) in steps {
                push(&mut ring, vec![b'x'; size + 1]);
                prop_assert!(ring.used() <= budget);
                if read {
                    drain(&ring);
                }
            }
            drain(&ring);
        }
    }
}
