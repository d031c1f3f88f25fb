//! What must hold of every parser, whatever it is fed, and of the local store, whatever it finds on the disk.
//!
//! Each function takes bytes that may be anything and panics where a promise is broken. The targets of libFuzzer in
//! `fuzz_targets` call them, and so does `xtask/tests/fuzz.rs` with random input on a stable toolchain.

mod log;

use ringfence::{BackendUrl, ErrorKind, FencingToken, LockName, Nonce, PresentedToken};

pub use log::log;

/// A URL is parsed or refused as one; what is parsed never prints its password.
pub fn url(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let url = match BackendUrl::parse(text) {
        Ok(url) => url,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{text:?}"),
    };
    assert!(text.starts_with(&format!("{}:", url.scheme())), "{text:?}");
    let printed = url.to_string();
    assert_eq!(printed, format!("{url:?}"), "{text:?}");
    if let Some(password) = url.password() {
        // A password can only be told from the rest where the rest does not contain it.
        let rest = [&[url.scheme().to_owned(), url.path().to_owned()], url.hosts()].concat().concat();
        let rest = rest + url.user().unwrap_or_default();
        let telling = password.len() >= 4 && password.bytes().all(|byte| byte.is_ascii_alphanumeric());
        assert!(!telling || rest.contains(password) || !printed.contains(password), "{text:?}: {printed}");
    }
}

/// A name is exactly what the rule says, and comes out as it went in.
pub fn name(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let rule = (1..=255).contains(&text.len()) && !text.chars().any(char::is_control);
    match LockName::new(text) {
        Ok(name) => {
            assert!(rule, "{text:?} was taken");
            assert_eq!(name.as_str(), text);
            assert_eq!(name.to_string().parse::<LockName>().unwrap(), name);
        }
        Err(error) => {
            assert!(!rule, "{text:?} was refused: {error}");
            assert_eq!(error.kind(), ErrorKind::InvalidName);
        }
    }
}

/// A token has one text form, sealed or not, and every token comes back from its own.
pub fn token(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        match text.parse::<FencingToken>() {
            Ok(token) => assert_eq!(token.to_string(), text),
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidToken, "{text:?}"),
        }
        match text.parse::<PresentedToken>() {
            Ok(shown) => {
                assert_eq!(shown.reveal(), text);
                assert_eq!(shown.is_sealed(), text.parse::<FencingToken>().is_err(), "{text:?}");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidToken, "{text:?}"),
        }
    }
    let Some((sequence, rest)) = data.split_first_chunk() else { return };
    let Some(nonce) = rest.first_chunk().and_then(|nonce| Nonce::from_u64(u64::from_le_bytes(*nonce))) else {
        return;
    };
    let sequence = u64::from_le_bytes(*sequence);
    match FencingToken::new(sequence, nonce) {
        Ok(token) => {
            assert!(sequence < 1 << 63, "{sequence} was taken");
            assert_eq!(token.to_string().parse::<FencingToken>().unwrap(), token);
        }
        Err(error) => {
            assert!(sequence >= 1 << 63, "{sequence} was refused: {error}");
            assert_eq!(error.kind(), ErrorKind::InvalidToken);
        }
    }
}
