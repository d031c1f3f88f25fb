//! The messages of etcd as Rust, from the subset of its protocol that the backend uses.

use std::fs;

use crate::command::{Result, root};

const PROTO: &str = "backends/etcd/proto/etcd.proto";
const RUST: &str = "backends/etcd/src/proto.rs";

/// Where the messages are, from the root, and what they should be.
///
/// They are committed, so that nobody needs a compiler of protocols to build the backend; and this one is Rust, so that nobody
/// needs `protoc` to change them.
pub(crate) fn messages() -> Result<(&'static str, String)> {
    let file = root().join(PROTO);
    let folder = file.parent().expect("a file is in a folder");
    let out = std::env::temp_dir().join(format!("ringfence-messages-{}", std::process::id()));
    fs::create_dir_all(&out)?;
    let compiled = protox::compile([&file], [folder])?;
    let written = prost_build::Config::new().out_dir(&out).compile_fds(compiled);
    let text = written.and_then(|()| fs::read_to_string(out.join("etcd.rs")));
    fs::remove_dir_all(&out)?;
    Ok((RUST, text?))
}
