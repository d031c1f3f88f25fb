//! How an entry of the log becomes bytes: a chain of frames of 64 bytes, each with its checksum.
//!
//! A frame never crosses a page, so neither a kill nor a full disk can tear one: a write that is cut short leaves a
//! prefix of whole frames, and a chain without its last frame counts as not written.

/// The size of a frame, a divisor of every page and sector size.
pub(crate) const FRAME: usize = 64;

/// What of a frame is payload; the rest is a checksum, the place in the chain and the length.
const PAYLOAD: usize = FRAME - 6;

const FIRST: u8 = 1;
const LAST: u8 = 2;

/// Appends the frames of one entry. The seed ties them to their segment, so that a frame of another one is no frame.
pub(crate) fn encode(payload: &[u8], seed: u32, out: &mut Vec<u8>) {
    let chunks = payload.chunks(PAYLOAD);
    let last = chunks.len() - 1;
    for (index, chunk) in chunks.enumerate() {
        let mut frame = [0; FRAME];
        frame[4] = if index == 0 { FIRST } else { 0 } | if index == last { LAST } else { 0 };
        frame[5] = u8::try_from(chunk.len()).expect("a chunk is smaller than a frame");
        frame[6..6 + chunk.len()].copy_from_slice(chunk);
        let checksum = checksum(&frame, seed).to_le_bytes();
        frame[..4].copy_from_slice(&checksum);
        out.extend_from_slice(&frame);
    }
}

fn checksum(frame: &[u8], seed: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&frame[4..FRAME]);
    hasher.finalize()
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Nothing but zeros: a page that never reached the disk before the power went.
    Zeros,
    /// Anything else.
    Garbage,
}

/// Puts the payloads of frames together again.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    partial: Vec<u8>,
    complete: bool,
}

impl Assembler {
    /// Takes the next frame; the payload of the entry if this was its last one.
    pub(crate) fn push(&mut self, frame: &[u8], seed: u32) -> Result<Option<&[u8]>, Damage> {
        let length = usize::from(frame[5]);
        if frame[..4] != checksum(frame, seed).to_le_bytes() || length > PAYLOAD {
            let zeros = frame.iter().all(|byte| *byte == 0);
            return Err(if zeros { Damage::Zeros } else { Damage::Garbage });
        }
        if frame[4] & FIRST != 0 {
            // Whatever came before without an end was the write of a process that was killed in the middle of it.
            self.partial.clear();
        } else if self.partial.is_empty() || self.complete {
            return Err(Damage::Garbage);
        }
        self.partial.extend_from_slice(&frame[6..6 + length]);
        self.complete = frame[4] & LAST != 0;
        Ok(self.complete.then_some(&self.partial))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8], seed: u32) -> Result<Vec<Vec<u8>>, Damage> {
        let mut assembler = Assembler::default();
        let mut entries = Vec::new();
        for frame in bytes.chunks_exact(FRAME) {
            entries.extend(assembler.push(frame, seed)?.map(<[u8]>::to_vec));
        }
        Ok(entries)
    }

    fn payload() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 1..400)
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(entries in prop::collection::vec(payload(), 0..8), seed: u32) {
            let mut bytes = Vec::new();
            for entry in &entries {
                encode(entry, seed, &mut bytes);
            }
            prop_assert_eq!(decode(&bytes, seed), Ok(entries));
        }

        #[test]
        fn a_write_cut_short_is_no_write(cut in payload(), next in payload(), keep in 0_usize..8, seed: u32) {
            let mut bytes = Vec::new();
            encode(&cut, seed, &mut bytes);
            let whole = bytes.len() / FRAME;
            prop_assume!(keep < whole);
            bytes.truncate(keep * FRAME);
            encode(&next, seed, &mut bytes);
            prop_assert_eq!(decode(&bytes, seed), Ok(vec![next]));
        }

        #[test]
        fn a_flipped_bit_is_seen(entry in payload(), at: prop::sample::Index, bit in 0_u8..8) {
            let mut bytes = Vec::new();
            encode(&entry, 7, &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes, 7).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1000), seed: u32) {
            let _ = decode(&bytes, seed);
        }
    }

    #[test]
    fn a_frame_of_another_segment_is_none() {
        let mut bytes = Vec::new();
        encode(b"entry", 1, &mut bytes);
        assert_eq!(decode(&bytes, 2), Err(Damage::Garbage));
        assert_eq!(decode(&[0; FRAME], 1), Err(Damage::Zeros));
    }
}
