//! What errors say that come in place of the reply to a script.

/// What an error in place of a script's reply means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Redis does not know the script by its name, or the client's user may not call it so.
    Name,
    /// The client's command has not run: its user may not do what the script does besides, or there are no scripts any more.
    Before,
    /// It has run in a short script, which may then not undo it.
    Behind,
    /// Its user may not run it.
    Refused,
}

/// What this reply to a script means besides what it says, if it does.
pub fn trouble(reply: &[u8]) -> Option<Trouble> {
    // What the client's own command says comes without the place.
    const PLACE: &[u8] = b"on @user_script:";
    let begins = |with: &[u8]| reply.starts_with(with);
    if begins(b"-NOPERM") || begins(b"-ERR Could not find scripting engine") {
        return Some(Trouble::Before);
    }
    if !begins(b"-ERR ") {
        return None;
    }
    match memchr::memmem::rfind(reply, PLACE).map(|at| &reply[at + PLACE.len()..]) {
        Some(line) if line.starts_with(b"1.") => Some(Trouble::Before),
        Some(_) => Some(Trouble::Behind),
        None if is_of_rights(&reply[1..]) => Some(Trouble::Refused),
        None => None,
    }
}

/// How errors about the rights of the client's user begin in scripts.
const SINCE_7_2: &[u8] = b"ERR ACL failure in script:";
const BEFORE_7_2: &[u8] = b"ERR The user executing the script";

/// Whether an error in a script is about the rights of the client's user.
pub fn is_of_rights(error: &[u8]) -> bool {
    error.starts_with(SINCE_7_2) || error.starts_with(BEFORE_7_2)
}

/// What Redis says outside of scripts instead of this reply to a script that runs `command`, if it is about the rights of the
/// client's user: an error without its mark.
pub fn refusal(reply: &[u8], command: &str) -> Option<Vec<u8>> {
    let error = reply.strip_prefix(b"-")?;
    if let Some(what) = error.strip_prefix(SINCE_7_2) {
        let end = memchr::memmem::rfind(what, b" script: ").or_else(|| memchr::memchr(b'\r', what));
        return Some([b"NOPERM", &what[..end.unwrap_or(what.len())]].concat());
    }
    let what = match memchr::memmem::find(error.strip_prefix(BEFORE_7_2)?, b"access") {
        Some(_) => "access one of the keys used as arguments".to_owned(),
        None => format!("run the '{command}' command"),
    };
    Some(format!("NOPERM this user has no permissions to {what}").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_7_0: &[u8] = b"-ERR The user executing the script can't access at least one of the keys mentioned in the command arguments";
    const RUN_7_0: &[u8] = b"-ERR The user executing the script can't run this command or subcommand";
    const KEY: &[u8] = b"-ERR ACL failure in script: No permissions to access a key";
    const RUN: &[u8] = b"-ERR ACL failure in script: User u has no permissions to run the 'setex' command";
    /// As Redis, and Valkey 9.1, tell where an error came up.
    const PLACES: [&str; 2] =
        [" script: 722769d95e09c971166648c0442eca4c42c22a6d, on @user_script:", " script: on @user_script:"];

    #[test]
    fn refusals_are_worded_as_outside_of_scripts() {
        let worded = [
            (KEY_7_0, "NOPERM this user has no permissions to access one of the keys used as arguments"),
            (RUN_7_0, "NOPERM this user has no permissions to run the 'setex' command"),
            (KEY, "NOPERM No permissions to access a key"),
            (RUN, "NOPERM User u has no permissions to run the 'setex' command"),
        ];
        for (reply, text) in worded {
            for place in ["\r\n".to_owned(), format!("{}1.\r\n", PLACES[0]), format!("{}1.\r\n", PLACES[1])] {
                let reply = [reply, place.as_bytes()].concat();
                assert_eq!(refusal(&reply, "setex").as_deref(), Some(text.as_bytes()), "{place}");
            }
        }
        for other in [b"-WRONGTYPE x\r\n".as_slice(), b"-NOPERM x\r\n", b"+OK\r\n", b"$3\r\nabc\r\n"] {
            assert_eq!(refusal(other, "setex"), None);
        }
    }

    #[test]
    fn errors_of_the_script_are_told_from_those_of_the_command() {
        for reply in [KEY_7_0, RUN_7_0, KEY, RUN] {
            let with = |end: &str| [reply, end.as_bytes(), b"\r\n"].concat();
            assert_eq!(trouble(&with("")), Some(Trouble::Refused));
            for place in PLACES {
                assert_eq!(trouble(&with(&format!("{place}1."))), Some(Trouble::Before));
                assert_eq!(trouble(&with(&format!("{place}2."))), Some(Trouble::Behind));
            }
        }
        assert_eq!(
            trouble(b"-NOPERM User u has no permissions to run the 'eval' command\r\n"),
            Some(Trouble::Before)
        );
        assert_eq!(trouble(b"-ERR Could not find scripting engine 'lua'\r\n"), Some(Trouble::Before));
        for other in [b"-WRONGTYPE x\r\n".as_slice(), b"-ERR syntax error\r\n", b"+OK\r\n", b":1\r\n"] {
            assert_eq!(trouble(other), None);
        }
    }
}
