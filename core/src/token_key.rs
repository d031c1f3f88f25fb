//! Tokens that cannot be forged: a key, and the token as its holder shows it.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};
use crate::name::LockName;
use crate::token::FencingToken;

/// What the MAC begins with, so that no other use of the same key can be taken for it.
const DOMAIN: &[u8] = b"ringfence token 1\0";

/// How much of the MAC is kept, in bytes: nobody guesses 128 bits.
const MAC_BYTES: usize = 16;

/// A secret that whoever grants tokens and whoever checks them have in common, so that nobody else can make one.
///
/// A fence believes the highest token that it has seen, so whoever can send it a made-up one with a huge sequence shuts everybody
/// else out. A fence with a key takes a token only with its MAC: HMAC-SHA-256 of the lock's name, the sequence and the nonce, of
/// which the first 128 bits are kept. `Debug` does not show the key.
///
/// ```
/// use ringfence_core::{FencingToken, LockName, PresentedToken, TokenKey};
///
/// let key = TokenKey::new(&[7; 32])?;
/// let (name, token): (LockName, FencingToken) = ("orders/42".parse()?, "1024.7b".parse()?);
/// let shown: PresentedToken = key.seal(&name, token).reveal().parse()?;
/// assert_eq!(key.verify(&name, &shown)?, token);
/// assert!(key.verify(&"orders/43".parse()?, &shown).is_err());
/// # Ok::<(), ringfence_core::Error>(())
/// ```
#[derive(Clone)]
pub struct TokenKey(Hmac<Sha256>);

impl TokenKey {
    /// The shortest key, in bytes.
    pub const BYTES_MIN: usize = 32;

    /// A key of these bytes. Errors with [`ErrorKind::InvalidRequest`] for fewer than [`Self::BYTES_MIN`].
    pub fn new(bytes: &[u8]) -> Result<Self> {
        if bytes.len() < Self::BYTES_MIN {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("a token key has at least {} bytes, this one has {}", Self::BYTES_MIN, bytes.len()),
            ));
        }
        Ok(Self(Hmac::new_from_slice(bytes).expect("HMAC takes a key of any length")))
    }

    /// The token of a lock with its MAC.
    pub fn seal(&self, name: &LockName, token: FencingToken) -> PresentedToken {
        let whole = self.over(name, token).finalize().into_bytes();
        let mac = whole.first_chunk().copied().expect("HMAC-SHA-256 has 32 bytes");
        PresentedToken { token, mac: Some(mac) }
    }

    /// The token, if its MAC was made with this key for this lock. Compares in constant time. Errors with
    /// [`ErrorKind::InvalidToken`].
    pub fn verify(&self, name: &LockName, shown: &PresentedToken) -> Result<FencingToken> {
        let token = shown.token;
        let refused = |why: &str| Err(Error::new(ErrorKind::InvalidToken, format!("token {token} {why}")));
        let Some(mac) = &shown.mac else {
            return refused(
                "has no MAC: it was granted without the key; name the key file in the URL (token_key_file)",
            );
        };
        match self.over(name, token).verify_truncated_left(mac) {
            Ok(()) => Ok(token),
            Err(_) => refused(
                "has a MAC of another key or another lock: it is forged, or the two sides have different key files",
            ),
        }
    }

    /// Every part but the name has a fixed length, and the name's stands before it.
    fn over(&self, name: &LockName, token: FencingToken) -> Hmac<Sha256> {
        let name = name.as_str().as_bytes();
        let length = u16::try_from(name.len()).expect("a name has at most 255 bytes");
        self.0
            .clone()
            .chain_update(DOMAIN)
            .chain_update(length.to_be_bytes())
            .chain_update(name)
            .chain_update(token.sequence().to_be_bytes())
            .chain_update(token.nonce().get().to_be_bytes())
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(***)")
    }
}

/// A token as its holder shows it: bare, or sealed with a [`TokenKey`].
///
/// The text form is the token's, `sequence.nonce`, and of a sealed one `sequence.nonce.mac` with 32 lower-case hexadecimal digits.
/// Whoever has the text of a sealed token can pass for its holder, so `Debug` leaves the MAC out and only
/// [`reveal`](Self::reveal) writes it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use = "a token protects nothing until it is given to the resource"]
pub struct PresentedToken {
    token: FencingToken,
    mac: Option<[u8; MAC_BYTES]>,
}

impl PresentedToken {
    /// The token, whether its MAC is right or not: [`TokenKey::verify`] says that.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Whether it carries a MAC.
    pub fn is_sealed(&self) -> bool {
        self.mac.is_some()
    }

    /// The text form with the MAC, for the resource. Do not log it.
    pub fn reveal(&self) -> String {
        let Self { token, mac } = self;
        match mac {
            None => token.to_string(),
            Some(mac) => format!("{token}.{:032x}", u128::from_be_bytes(*mac)),
        }
    }
}

impl From<FencingToken> for PresentedToken {
    fn from(token: FencingToken) -> Self {
        Self { token, mac: None }
    }
}

impl fmt::Debug for PresentedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.token, if self.is_sealed() { ".***" } else { "" })
    }
}

impl FromStr for PresentedToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.match_indices('.').nth(1) {
            None => text.parse().map(|token| Self { token, mac: None }),
            Some((dot, _)) => {
                let (token, mac) = (text[..dot].parse()?, &text[dot + 1..]);
                let digits = mac.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                let mac = u128::from_str_radix(mac, 16).ok().filter(|_| digits && mac.len() == 2 * MAC_BYTES);
                // What was meant to be a MAC is not shown.
                let mac = mac.ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidToken,
                        format!("no MAC follows the token {token}: it is 32 lower-case hexadecimal digits"),
                    )
                })?;
                Ok(Self { token, mac: Some(mac.to_be_bytes()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::Nonce;

    fn key(byte: u8) -> TokenKey {
        TokenKey::new(&[byte; TokenKey::BYTES_MIN]).unwrap()
    }

    fn name(text: &str) -> LockName {
        text.parse().unwrap()
    }

    /// Made once with Python's `hmac`, so that other languages can make the same:
    /// `hmac.new(b"k" * 32, b"ringfence token 1\0" + struct.pack(">H", 9) + b"orders/42" + struct.pack(">QQ", 1024, 0x7b), "sha256")`.
    #[test]
    fn the_mac_is_the_documented_one() {
        let shown = key(b'k').seal(&name("orders/42"), "1024.7b".parse().unwrap());
        assert_eq!(shown.reveal(), "1024.7b.ea750128142b091e4ff0b7c3acee5abc");
    }

    #[test]
    fn a_mac_is_of_one_key_one_name_and_one_token() {
        let token: FencingToken = "1024.7b".parse().unwrap();
        let shown = key(1).seal(&name("a"), token);
        assert_eq!(key(1).verify(&name("a"), &shown).unwrap(), token);
        let other = |token: &str| PresentedToken { token: token.parse().unwrap(), mac: shown.mac };
        for (key, name, shown) in [
            (key(2), name("a"), shown),
            (key(1), name("b"), shown),
            (key(1), name("a"), other("1025.7b")),
            (key(1), name("a"), other("1024.7c")),
            (key(1), name("a"), token.into()),
        ] {
            let refused = key.verify(&name, &shown).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidToken);
        }
    }

    #[test]
    fn neither_key_nor_mac_is_printed() {
        let shown = key(b'k').seal(&name("a"), "1024.7b".parse().unwrap());
        assert_eq!(format!("{shown:?} {:?}", key(b'k')), "1024.7b.*** TokenKey(***)");
        let text = shown.reveal();
        let (_, mac) = text.rsplit_once('.').unwrap();
        let longer = format!("{text}0").parse::<PresentedToken>().unwrap_err();
        assert!(!longer.to_string().contains(mac), "{longer}");
    }

    #[test]
    fn a_short_key_is_refused() {
        let refused = TokenKey::new(&[0; 31]).unwrap_err().to_string();
        assert!(refused.contains("at least 32 bytes, this one has 31"), "{refused}");
    }

    #[test]
    fn there_is_one_text_form() {
        for text in [
            "1024.7b.",
            "1024.7b.0",
            "1024.7b.0123456789abcdef0123456789ABCDEF",
            "1024.7b.+123456789abcdef0123456789abcdef",
            "1024.7b.00123456789abcdef0123456789abcdef",
            "1024.7b.0123456789abcdef0123456789abcdef.",
            "1024.07b.0123456789abcdef0123456789abcdef",
            ".1024.7b",
            "1024.7b ",
        ] {
            let refused = text.parse::<PresentedToken>().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidToken, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_read_back_and_verified(
            secret in proptest::collection::vec(any::<u8>(), 32..100),
            lock in "[^\\p{Cc}]{1,60}",
            sequence in 0..(1_u64 << 63),
            nonce in 1..=u64::MAX,
        ) {
            let key = TokenKey::new(&secret).unwrap();
            let token = FencingToken::new(sequence, Nonce::from_u64(nonce).unwrap()).unwrap();
            let (name, bare) = (name(&lock), PresentedToken::from(token));
            prop_assert_eq!(bare.reveal().parse::<PresentedToken>().unwrap(), bare);
            let shown = key.seal(&name, token);
            let read: PresentedToken = shown.reveal().parse().unwrap();
            prop_assert_eq!(read, shown);
            prop_assert_eq!(key.verify(&name, &read).unwrap(), token);
        }
    }
}
