//! The log that all processes of a store append to, and the table that each folds out of it.
//!
//! One `write` of whole frames to a file opened for appending is the only step that changes anything. The kernel
//! orders these writes, so every process that reads the log comes to the same table, and there is no critical section
//! in which a process that is stopped or killed could leave the others waiting.

use std::borrow::Cow;
use std::sync::Arc;

use ringfence_core::table::{Answer, Effects, Op, Seat, Table};
use ringfence_core::{Nonce, Result};

use crate::directory::Directory;
use crate::frame::{Assembler, Damage, FRAME};
use crate::segment::{self, Line, Segment};

/// How much of the log is read at once.
const READ_BUFFER: usize = 1024 * FRAME;

/// What reading on brought that others, or tasks of this process, should know.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Attempts of this session whose place changed: their turn came, their lease ended, somebody else is in front.
    pub(crate) own: Vec<Nonce>,
    /// Sessions to tell that something of theirs changed, because this session changed it.
    pub(crate) tell: Vec<Nonce>,
    /// The log went on elsewhere while this process slept, so every waiter should look again.
    pub(crate) jumped: bool,
}

/// A place in the log, for [`crate::durable`] to write to disk up to there.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub(crate) file: Arc<std::os::fd::OwnedFd>,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

#[derive(Debug)]
pub(crate) struct Log {
    directory: Arc<Directory>,
    session: Nonce,
    segment: Segment,
    read_to: u64,
    assembler: Assembler,
    buffer: Vec<u8>,
    encoded: Vec<u8>,
    last_id: u64,
    /// What was answered to our operations from this one on.
    answers_from: u64,
    answers: Vec<Answer>,
    table: Table,
    /// Whether the pieces that the segment begins with are news.
    restoring: bool,
    news: News,
}

impl Log {
    /// Opens the newest segment and reads it. `alone` says whether no other process has the store open: only then may an
    /// end that was lost with the power be cut off.
    pub(crate) fn open(
        directory: Arc<Directory>,
        session: Nonce,
        alone: impl Fn() -> Result<bool>,
    ) -> Result<Self> {
        let segment = Segment::newest(&directory, session)?;
        let mut log = Self {
            directory,
            session,
            segment,
            read_to: FRAME as u64,
            assembler: Assembler::default(),
            buffer: vec![0; READ_BUFFER],
            encoded: Vec::new(),
            last_id: 0,
            answers_from: 1,
            answers: Vec::new(),
            table: Table::default(),
            restoring: true,
            news: News::default(),
        };
        match log.read_on()? {
            None => {}
            Some(Damage::Zeros) if alone()? => {
                tracing::warn!(
                    store = %log.directory.path().display(),
                    "the end of the log did not reach the disk before the power went; it is cut off, and sequences go on above it"
                );
                log.segment.keep_damaged(&log.directory)?;
                log.begin_next()?;
            }
            Some(_) => return Err(log.damaged()),
        }
        log.news = News::default();
        Ok(log)
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The file that is appended to.
    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Where the log was read to.
    pub(crate) fn position(&self) -> Position {
        Position { file: self.segment.file.clone(), segment: self.segment.number, offset: self.read_to }
    }

    /// What reading and committing brought since this was last asked.
    pub(crate) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// Appends operations and reads on until they are seen: what the table answered to each.
    pub(crate) fn commit(&mut self, ops: &[Op]) -> Result<Vec<Answer>> {
        let first = self.last_id + 1;
        self.last_id += ops.len() as u64;
        // Operations of a commit that failed half-way may still come by: they have their effects, but nobody asks.
        self.answers_from = first;
        self.answers.clear();
        loop {
            let number = self.segment.number;
            let mut encoded = std::mem::take(&mut self.encoded);
            encoded.clear();
            for (id, op) in (first..).zip(ops) {
                let line = Line::Op { author: self.session, id, op: Cow::Borrowed(op) };
                segment::encode(&line, number, &mut encoded);
            }
            let appended = segment::append(&self.segment.file, &encoded);
            self.encoded = encoded;
            appended.map_err(|errno| self.directory.error(errno, "cannot write to the store's file"))?;
            // They stand in the log by now, whether or not we can read what came of them.
            self.catch_up().map_err(ringfence_core::Error::with_unknown_effect)?;
            if self.answers.len() == ops.len() {
                break;
            }
            // The segment was sealed before these operations came: they do not count, say them again in the next one.
        }
        if self.read_to >= self.segment.full_at {
            self.seal()?;
        }
        Ok(std::mem::take(&mut self.answers))
    }

    /// Errors if the store was removed or replaced under us.
    pub(crate) fn check_place(&mut self) -> Result<()> {
        let number = self.segment.number;
        if !self.segment.is_removed() {
            return Ok(());
        }
        // The log went on in another segment, unless its end is nowhere in it.
        self.catch_up()?;
        if self.segment.number > number {
            return Ok(());
        }
        Err(segment::corrupt(&self.directory, number, "it was removed while in use"))
    }

    /// Reads what others appended.
    pub(crate) fn catch_up(&mut self) -> Result<()> {
        match self.read_on()? {
            None => Ok(()),
            Some(_) => Err(self.damaged()),
        }
    }

    fn damaged(&self) -> ringfence_core::Error {
        let why = format!("the frame at byte {} has no valid checksum", self.read_to);
        segment::corrupt(&self.directory, self.segment.number, &why)
    }

    fn read_on(&mut self) -> Result<Option<Damage>> {
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = rustix::io::pread(&self.segment.file, &mut buffer, self.read_to);
            let outcome = read
                .map_err(|errno| self.directory.error(errno, "cannot read the store's file"))
                .and_then(|size| self.fold(&buffer[..size]).map(|folded| (size, folded)));
            self.buffer = buffer;
            match outcome? {
                (_, Folded::Damage(damage)) => return Ok(Some(damage)),
                (size, Folded::All) if size < READ_BUFFER => return Ok(None),
                (_, Folded::All | Folded::Sealed) => {}
            }
        }
    }

    fn fold(&mut self, bytes: &[u8]) -> Result<Folded> {
        if !bytes.len().is_multiple_of(FRAME) {
            return Ok(Folded::Damage(Damage::Garbage));
        }
        let seed = self.segment.seed();
        for frame in bytes.chunks_exact(FRAME) {
            let line = match self.assembler.push(frame, seed) {
                Ok(None) => None,
                Ok(Some(payload)) => match postcard::from_bytes(payload) {
                    Ok(line) => Some(line),
                    Err(_) => return Ok(Folded::Damage(Damage::Garbage)),
                },
                Err(damage) => return Ok(Folded::Damage(damage)),
            };
            self.read_to += FRAME as u64;
            match line {
                Some(Line::Piece(piece)) if self.restoring => self.table.restore(piece),
                None | Some(Line::Piece(_)) => {}
                Some(Line::Op { author, id, op }) => self.apply(author, id, op.into_owned()),
                Some(Line::Seal) => {
                    // If the next segment cannot be written we must not read past the end of this one.
                    self.read_to -= FRAME as u64;
                    self.begin_next()?;
                    return Ok(Folded::Sealed);
                }
            }
        }
        Ok(Folded::All)
    }

    fn apply(&mut self, author: Nonce, id: u64, op: Op) {
        let (answer, effects) = self.table.apply(op);
        let ours = author == self.session;
        if ours && id >= self.answers_from {
            self.answers.push(answer);
        }
        let Effects { offered, ended, moved } = effects;
        for Seat { nonce, session } in offered.into_iter().chain(ended).chain(moved) {
            if session == self.session {
                self.news.own.push(nonce);
            } else if ours && !self.news.tell.contains(&session) {
                self.news.tell.push(session);
            }
        }
    }

    /// Ends the segment, unless there is no room on the disk for the next one: then this one grows for as long as it can.
    fn seal(&mut self) -> Result<()> {
        if !self.segment.has_room_for_next(&self.directory) {
            return Ok(());
        }
        let mut encoded = Vec::new();
        segment::encode(&Line::Seal, self.segment.number, &mut encoded);
        segment::append(&self.segment.file, &encoded)
            .map_err(|errno| self.directory.error(errno, "cannot write to the store's file"))?;
        self.catch_up()
    }

    /// Goes on in the next segment, which begins with the table as it stands, or in the newest one.
    fn begin_next(&mut self) -> Result<()> {
        let number = self.segment.number + 1;
        if self.segment.is_removed() && !segment::is_any(&self.directory)? {
            // Somebody removed the whole store; it is not for us to bring it back.
            return Err(segment::corrupt(
                &self.directory,
                self.segment.number,
                "it was removed while in use",
            ));
        }
        let mut newest = Segment::newest(&self.directory, self.session)?;
        if newest.number < number {
            Segment::create(&self.directory, self.session, number, &self.table)?;
            newest = Segment::newest(&self.directory, self.session)?;
        }
        // The very next segment begins with the table that we have. Any other tells what we slept through.
        self.restoring = newest.number > number;
        if self.restoring {
            self.table = Table::default();
            self.news.jumped = true;
        }
        self.segment = newest;
        self.read_to = FRAME as u64;
        self.assembler = Assembler::default();
        Ok(())
    }
}

/// How far a piece of the log could be folded.
enum Folded {
    All,
    /// Up to the end of the segment; the rest of it does not count.
    Sealed,
    Damage(Damage),
}
