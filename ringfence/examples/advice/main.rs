//! The programs that `ringfence advise` prints, each as it is printed. This one runs all of them.

mod fenced_record;
mod lock;
mod permits;

/// A program, by its name.
type Program = (&'static str, fn() -> ringfence::Result<()>);

const PROGRAMS: [Program; 3] =
    [("fenced_record", fenced_record::main), ("lock", lock::main), ("permits", permits::main)];

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
