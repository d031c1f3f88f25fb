use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::error::{Error, ErrorKind, Result};

/// Which backend to use, and how: `scheme:` with an authority, a path and parameters.
///
/// Parsing is strict: an unknown parameter is an error that names the nearest known one, a repeated parameter is an
/// error, and nothing is ignored. `Debug` and `Display` never show the password.
///
/// ```
/// use ringfence_core::BackendUrl;
///
/// let url = BackendUrl::parse("local:/var/lib/locks?ttl=10s")?;
/// assert_eq!((url.scheme(), url.path(), url.param("ttl")), ("local", "/var/lib/locks", Some("10s")));
/// let error = url.check_params(&["tto", "handovers"]).unwrap_err();
/// assert!(error.to_string().contains("did you mean \"tto\"?"), "{error}");
/// # Ok::<(), ringfence_core::Error>(())
/// ```
#[derive(Clone)]
pub struct BackendUrl {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<String>,
    path: String,
    params: Vec<(String, String)>,
}

impl BackendUrl {
    /// Parses a URL. Errors with [`ErrorKind::InvalidUrl`].
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: String| Error::new(ErrorKind::InvalidUrl, why);
        if let Some(bad) = text.chars().find(|character| character.is_control() || *character == ' ') {
            return Err(invalid(format!("a backend URL must not contain {bad:?}: write it percent-encoded")));
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            let hint =
                if text.starts_with('/') { format!(": did you mean local:{text}?") } else { String::new() };
            invalid(format!("{text:?} is no backend URL, it has no scheme such as local: or memory:{hint}"))
        })?;
        let known_form = scheme.starts_with(|first: char| first.is_ascii_lowercase())
            && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'+');
        if !known_form {
            return Err(invalid(format!(
                "{scheme:?} is no scheme: it is lower-case letters, digits and +, as in local: or redis+unix:"
            )));
        }
        if rest.contains('#') {
            return Err(invalid(format!("{scheme}: takes no #fragment; write a # in a path as %23")));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let decode = |part: &str| {
            percent_decode_str(part)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| invalid(format!("the {scheme}: URL is not UTF-8 after percent-decoding")))
        };
        let (authority, path) = match place.strip_prefix("//") {
            Some(place) => place.find('/').map_or((place, ""), |slash| place.split_at(slash)),
            None => ("", place),
        };
        let (login, hosts) = authority.rsplit_once('@').map_or((None, authority), |(l, h)| (Some(l), h));
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            None => (None, None),
            Some((user, password)) => (Some(decode(user)?), Some(decode(password)?)),
        };
        let path = decode(path)?;
        if let Some(bad) = path.chars().find(|character| character.is_control()) {
            return Err(invalid(format!(
                "the path of a {scheme}: URL must not contain {bad:?}, encoded or not"
            )));
        }
        let non_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
        let mut params: Vec<(String, String)> = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if params.iter().any(|(seen, _)| *seen == key) {
                return Err(invalid(format!(
                    "the parameter {key:?} of the {scheme}: URL stands there twice"
                )));
            }
            params.push((key.into_owned(), value.into_owned()));
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            user: non_empty(user),
            password: non_empty(password),
            hosts: hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect(),
            path,
            params,
        })
    }

    /// What stands before the first colon.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user, where one is named.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, where one is given. Never print it.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The hosts, each with its port as it was written; empty for a backend without servers.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The path, percent-decoded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The value of a parameter, where it is given.
    pub fn param(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter that has one of two values has the second. It has the first where it is not given. Errors with
    /// [`ErrorKind::InvalidUrl`] for any other value.
    pub fn choice(&self, key: &str, [first, second]: [&str; 2]) -> Result<bool> {
        match self.param(key) {
            None => Ok(false),
            Some(value) if value == first => Ok(false),
            Some(value) if value == second => Ok(true),
            Some(other) => {
                let guess = nearest(other, &[second, first]).map(|near| format!(", did you mean {near:?}?"));
                let guess = guess.unwrap_or_default();
                Err(Error::new(
                    ErrorKind::InvalidUrl,
                    format!("{key}={other:?} is neither {first:?} nor {second:?}{guess}"),
                ))
            }
        }
    }

    /// Errors on the first parameter that is not among `known`, and names the nearest that is.
    pub fn check_params(&self, known: &[&str]) -> Result<()> {
        let Some((key, _)) = self.params.iter().find(|(key, _)| !known.contains(&key.as_str())) else {
            return Ok(());
        };
        let guess =
            nearest(key, known).map_or_else(|| ".".to_owned(), |near| format!(", did you mean {near:?}?"));
        Err(Error::new(
            ErrorKind::InvalidUrl,
            format!("{}: knows no parameter {key:?}{guess} Known: {}", self.scheme, known.join(", ")),
        ))
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if !self.hosts.is_empty() {
            f.write_str("//")?;
            if self.user.is_some() || self.password.is_some() {
                let secret = if self.password.is_some() { ":***" } else { "" };
                write!(f, "{}{secret}@", self.user.as_deref().unwrap_or_default())?;
            }
            f.write_str(&self.hosts.join(","))?;
        }
        f.write_str(&self.path)
    }
}

impl fmt::Debug for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A host of [`BackendUrl::hosts`] and its port, which is the default where none is written; an address of version 6 without its
/// brackets. Errors with [`ErrorKind::InvalidUrl`].
pub fn split_port(host: &str, default: u16) -> Result<(String, u16)> {
    let invalid = |why| Error::new(ErrorKind::InvalidUrl, why);
    let (name, port) = match host.rsplit_once(':') {
        // The colons of an address of version 6 stand in brackets.
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let port = match port.map(str::parse) {
        None => default,
        Some(Ok(port)) if port != 0 => port,
        // It may be a password whose host was forgotten, and is not shown.
        Some(_) => {
            return Err(invalid(
                "no port follows the colon of the host: it is a number from 1 to 65535".to_owned(),
            ));
        }
    };
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    if bracketed.is_none() && name.contains(':') {
        return Err(invalid(
            "more than one colon stands in a host: write host:port, and an address of version 6 in brackets, as in [::1]:80"
                .to_owned(),
        ));
    }
    let name = bracketed.unwrap_or(name);
    if name.is_empty() {
        return Err(invalid(format!("{host:?} names no host: write host:{default}")));
    }
    Ok((name.to_owned(), port))
}

/// The known word nearest to a mistyped one, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Parses a duration with its unit, as in `30s`, `1m 30s` or `250ms`. A bare number is refused: a wrong unit in a lock
/// is an outage. Errors with [`ErrorKind::InvalidRequest`].
pub fn parse_duration(text: &str) -> Result<Duration> {
    humantime::parse_duration(text).map_err(|error| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("{text:?} is no duration: write it with a unit, as in 30s, 250ms or 1m 30s"),
        )
        .because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let url = BackendUrl::parse("redis://alice:s3cret%21@one:1,two:2/0").unwrap();
        assert_eq!((url.user(), url.password()), (Some("alice"), Some("s3cret!")));
        assert_eq!(url.hosts(), ["one:1", "two:2"]);
        assert_eq!(url.to_string(), "redis://alice:***@one:1,two:2/0");
        assert!(!format!("{url:?}").contains("s3cret"));
    }

    #[test]
    fn what_is_no_url_says_what_to_write() {
        for (text, hint) in [
            ("/var/lib/locks", "did you mean local:/var/lib/locks?"),
            ("Local:", "lower-case"),
            ("local:/a b", "percent-encoded"),
            ("local:/a#b", "%23"),
            ("local:/a?ttl=1s&ttl=2s", "twice"),
            ("local:/%ff", "UTF-8"),
            ("local:/a%0ab", "must not contain '\\n'"),
            ("", "no scheme"),
        ] {
            let error = BackendUrl::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(error.to_string().contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("1m 30s").unwrap(), Duration::from_secs(90));
        for text in ["30", "", "-1s", "NaN", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_choice_is_one_of_two() {
        let choice = |url: &str| BackendUrl::parse(url).unwrap().choice("keys", ["encoded", "verbatim"]);
        assert!(!choice("redis://one").unwrap());
        assert!(!choice("redis://one?keys=encoded").unwrap());
        assert!(choice("redis://one?keys=verbatim").unwrap());
        let error = choice("redis://one?keys=verbatin").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUrl);
        let said = "keys=\"verbatin\" is neither \"encoded\" nor \"verbatim\", did you mean \"verbatim\"?";
        assert!(error.to_string().contains(said), "{error}");
    }

    #[test]
    fn a_host_has_a_port() {
        for (written, host, port) in
            [("one", "one", 7), ("one:80", "one", 80), ("[::1]", "::1", 7), ("[::1]:80", "::1", 80)]
        {
            assert_eq!(split_port(written, 7).unwrap(), (host.to_owned(), port), "{written}");
        }
        for (written, said) in [
            ("one:", "no port"),
            ("one:0", "no port"),
            ("one:65536", "no port"),
            (":80", "write host:7"),
            ("[]", "no host"),
            ("one:17001:99", "more than one colon"),
            ("::1", "more than one colon"),
        ] {
            let error = split_port(written, 7).unwrap_err();
            assert!(
                error.kind() == ErrorKind::InvalidUrl && error.to_string().contains(said),
                "{written}: {error}"
            );
        }
    }
}
