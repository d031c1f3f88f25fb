//! Running other programs, where a person can see which.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a chore ends with. The error is one line for a person.
pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// A program, to run in the folder of the workspace.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root());
    command
}

/// The cargo that runs us, without what it tells us of our package: another cargo would build some packages anew for it, and
/// the one after that again.
pub(crate) fn cargo() -> Command {
    let mut cargo = program(&env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    let told = env::vars_os().map(|(name, _)| name);
    for name in told.filter(|name| {
        ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|kind| name.to_string_lossy().starts_with(kind))
    }) {
        cargo.env_remove(name);
    }
    cargo
}

/// Whether this run is CI's, where a test that cannot run has failed.
pub(crate) fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
}

/// Shows the command, runs it with our terminal, and fails if it does.
pub(crate) fn run(command: &mut Command) -> Result {
    let shown = shown(command);
    eprintln!("$ {shown}");
    let status = command.status().map_err(|error| format!("cannot run `{shown}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{shown}` ended with {status}").into()) }
}

/// Whether the command can be run and succeeds. Shows nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// The command as one would type it, with the variables that it sets.
pub(crate) fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={:?} ", name.to_string_lossy(), value?.to_string_lossy()))
    });
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy());
    variables.collect::<String>() + &words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_how_it_ended() {
        let error = run(program("sh").args(["-c", "exit 3"]).env("A", "b c")).unwrap_err().to_string();
        assert_eq!(error, "`A=\"b c\" sh -c exit 3` ended with exit status: 3");
        let error = run(&mut program("/no/such/program")).unwrap_err().to_string();
        assert!(error.starts_with("cannot run `program`"), "{error}");
    }
}
