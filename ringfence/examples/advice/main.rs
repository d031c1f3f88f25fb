//! The programs that `ringfence advise` prints, each as it is printed. This one runs all of them.

#![expect(unreachable_pub, reason = "each of them is a program of its own where it is pasted")]

mod fenced_record;
mod idempotency;
mod leader;
mod lock;
mod lock_delay;
mod once;
mod partitions;
mod permits;
mod versioned;

/// A program, by its name.
type Program = (&'static str, fn() -> ringfence::Result<()>);

const PROGRAMS: [Program; 9] = [
    ("fenced_record", fenced_record::main),
    ("idempotency", idempotency::main),
    ("leader", leader::main),
    ("lock", lock::main),
    ("lock_delay", lock_delay::main),
    ("once", once::main),
    ("partitions", partitions::main),
    ("permits", permits::main),
    ("versioned", versioned::main),
];

fn main() -> ringfence::Result<()> {
    for (name, program) in PROGRAMS {
        println!("{name}:");
        program()?;
    }
    Ok(())
}

#[test]
fn every_program_runs_to_its_end() {
    for (name, program) in PROGRAMS {
        program().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
