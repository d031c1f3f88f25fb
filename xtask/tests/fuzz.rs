//! The fuzz targets on a stable toolchain: random bytes, and text that is nearly right.
//!
//! Each test has the name of its target, so that `cargo xtask fuzz` can run it alone.

// A dependency on the package would bring libFuzzer, and with it a C++ compiler, into every build.
#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "in its own package it is the public interface")]
mod targets;

use proptest::prelude::*;

proptest! {
    #[test]
    fn url(data in nearly("[a-zA-Z+]{0,6}:?(//)?([a-z%0-9]{0,8}:?[a-zA-Z0-9%]{0,8}@)?[a-z0-9.,:]{0,12}/?[ -~]{0,12}(\\?[a-z=&%]{0,12})?#?")) {
        targets::url(&data);
    }

    #[test]
    fn name(data in nearly("\\PC{0,90}\u{7f}?\\PC{0,3}")) {
        targets::name(&data);
    }

    #[test]
    fn log(data in file_or_edits()) {
        targets::log(&data);
    }

    #[test]
    fn token(data in nearly("[+-]?[0-9]{0,20}\\.?[+-]?[0-9a-fA-F]{0,17}(\\.[+0-9a-fA-F]{0,33})?")) {
        targets::token(&data);
    }
}

/// Bytes, or text of about this form.
fn nearly(form: &'static str) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        proptest::string::string_regex(form)
            .expect("the form is a regular expression")
            .prop_map(String::into_bytes),
    ]
}

/// What the store is fed as a whole file, or a few edits of one that is in order.
fn file_or_edits() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        1 => bytes(600).prop_map(|file| [&[0], &file[..]].concat()),
        9 => bytes(16).prop_map(|edits| [&[1], &edits[..]].concat()),
    ]
}
