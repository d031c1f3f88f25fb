//! The header `Ringfence-Token`.

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use ringfence_core::{Error, ErrorKind, LockName, PresentedToken, Result};

/// The name of the header, `Ringfence-Token`; as a type of the crate `http` in lower case.
pub const TOKEN_HEADER: HeaderName = HeaderName::from_static("ringfence-token");

/// What is written percent-encoded in a name: what no header holds, what ends the name, and what begins an encoded byte. (The
/// comma as well, because some proxies join two headers of one name with it.)
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b',').add(b';');

/// What the header says: a lock, and the token of a holder of it.
///
/// Written as `name;sequence.nonce`, or `name;sequence.nonce.mac` of a sealed token. The name is percent-encoded UTF-8. Spaces,
/// `%`, `,`, `;`, and what is not ASCII must be encoded, and any other character may be, so that `encodeURIComponent` of JavaScript
/// and `urllib.parse.quote` of Python both do.
///
/// ```
/// use ringfence_http::TokenHeader;
///
/// let header: TokenHeader = "orders%2F42;1024.7b".parse()?;
/// assert_eq!(header.name().as_str(), "orders/42");
/// assert_eq!(header.to_value(), "orders/42;1024.7b");
/// # Ok::<(), ringfence_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHeader {
    name: LockName,
    token: PresentedToken,
}

impl TokenHeader {
    /// The header of a holder: the name of its guard, and its token, sealed or not.
    pub fn new(name: LockName, token: impl Into<PresentedToken>) -> Self {
        Self { name, token: token.into() }
    }

    /// The lock.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The token, as it was shown.
    pub fn token(&self) -> PresentedToken {
        self.token
    }

    /// The header's value, marked as sensitive, so that it is left out where headers are printed.
    ///
    /// The clients of Rust, reqwest for one, take it as it is: `request.header(TOKEN_HEADER, header.to_value())`.
    pub fn to_value(&self) -> HeaderValue {
        let text = format!("{};{}", utf8_percent_encode(self.name.as_str(), ENCODED), self.token.reveal());
        let mut value = HeaderValue::try_from(text).expect("what no header holds is percent-encoded");
        value.set_sensitive(true);
        value
    }

    /// Puts the header on a request, in place of one that is there.
    pub fn put_on<B>(&self, request: &mut http::Request<B>) {
        request.headers_mut().insert(TOKEN_HEADER, self.to_value());
    }

    /// The header of a request, `None` if there is none. Errors with [`ErrorKind::InvalidToken`] for more than one, and for one
    /// that is not of the form.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>> {
        let mut values = headers.get_all(TOKEN_HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(malformed("it stands there more than once"));
        }
        let text = value.to_str().map_err(|_| malformed("what is not ASCII is percent-encoded"))?;
        text.parse().map(Some)
    }
}

impl std::str::FromStr for TokenHeader {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, token) = text
            .split_once(';')
            .ok_or_else(|| malformed("a semicolon stands between the lock's name and the token"))?;
        if let Some(bad) = name.chars().find(|character| !matches!(character, '!'..='~') || *character == ',')
        {
            return Err(malformed(&format!("{bad:?} in a name is percent-encoded")));
        }
        let mut parts = name.split('%');
        parts.next();
        let is_encoded = |part: &str| {
            part.as_bytes().first_chunk::<2>().is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        };
        if !parts.all(is_encoded) {
            return Err(malformed("two hexadecimal digits follow each % of a name"));
        }
        let name = percent_decode_str(name)
            .decode_utf8()
            .map_err(|_| malformed("the name is not UTF-8 after percent-decoding"))?;
        let name = LockName::new(name).map_err(|error| malformed(error.message()))?;
        Ok(Self { name, token: token.parse().map_err(|error: Error| malformed(error.message()))? })
    }
}

fn malformed(why: &str) -> Error {
    Error::new(ErrorKind::InvalidToken, format!("the header Ringfence-Token: name;sequence.nonce: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_core::{FencingToken, Nonce, TokenKey};

    use super::*;

    #[test]
    fn what_must_be_encoded_is() {
        let token: FencingToken = "1024.7b".parse().unwrap();
        let header = TokenHeader::new("über 100%;a,b\u{a0}".parse().unwrap(), token);
        let value = header.to_value();
        assert_eq!(value, "%C3%BCber%20100%25%3Ba%2Cb%C2%A0;1024.7b");
        assert!(value.is_sensitive());
        assert_eq!(value.to_str().unwrap().parse::<TokenHeader>().unwrap(), header);
    }

    #[test]
    fn what_is_not_of_the_form_says_so() {
        for (text, why) in [
            ("", "a semicolon"),
            ("a", "a semicolon"),
            (";1.1", "must not be empty"),
            ("a;", "is no token"),
            ("a; 1.1", "is no token"),
            ("a;1.1;b", "is no token"),
            ("a;1.1, b;2.2", "is no token"),
            ("a,b;1.1", "',' in a name is percent-encoded"),
            ("a b;1.1", "' ' in a name"),
            ("ü;1.1", "'ü' in a name"),
            ("a%;1.1", "two hexadecimal digits"),
            ("a%2;1.1", "two hexadecimal digits"),
            ("a%+1;1.1", "two hexadecimal digits"),
            ("a%ff;1.1", "not UTF-8"),
            ("a%00;1.1", "control characters"),
            ("a;9223372036854775808.1", "below 2^63"),
            ("a;1.1.0", "no MAC follows"),
        ] {
            let error = text.parse::<TokenHeader>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidToken);
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn there_is_exactly_one() {
        let mut headers = HeaderMap::new();
        assert_eq!(TokenHeader::of(&headers).unwrap(), None);
        headers.append(TOKEN_HEADER, HeaderValue::from_static("a;1.1"));
        assert_eq!(TokenHeader::of(&headers).unwrap().unwrap().name().as_str(), "a");
        headers.append(TOKEN_HEADER, HeaderValue::from_static("a;1.1"));
        let error = TokenHeader::of(&headers).unwrap_err();
        assert!(error.to_string().contains("more than once"), "{error}");
    }

    proptest! {
        #[test]
        fn every_name_and_token_comes_back(
            name in "[^\\p{Cc}]{1,60}",
            sequence in 0..(1_u64 << 63),
            nonce in 1..=u64::MAX,
            sealed: bool,
        ) {
            let name: LockName = name.parse().unwrap();
            let token = FencingToken::new(sequence, Nonce::from_u64(nonce).unwrap()).unwrap();
            let shown = if sealed { TokenKey::new(&[7; 32]).unwrap().seal(&name, token) } else { token.into() };
            let header = TokenHeader::new(name, shown);
            let mut request = http::Request::new(());
            header.put_on(&mut request);
            prop_assert_eq!(TokenHeader::of(request.headers()).unwrap().unwrap(), header);
        }

        #[test]
        fn whatever_is_parsed_has_one_meaning(text in "[a-z%,; ü]{0,6}(%[0-9a-fA-F]{2}){0,3};[0-9]{0,4}\\.?[0-9a-f]{0,4}(\\.[0-9a-f]{32})?[;, ]?") {
            if let Ok(header) = text.parse::<TokenHeader>() {
                let again: TokenHeader = header.to_value().to_str().unwrap().parse().unwrap();
                prop_assert_eq!(&again, &header);
                let (_, token) = text.rsplit_once(';').unwrap();
                prop_assert_eq!(header.token().reveal(), token);
            }
        }
    }
}
