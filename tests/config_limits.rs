//! The bounds that an administrator may set: what is taken, and what is said of the rest.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rescind::config::{self, Config, Flags};

const NO_VARIABLES: [(&str, &str); 0] = [];

fn read(text: &str) -> Result<Config, String> {
    let loaded = config::parse("proxy.toml", text.as_bytes(), NO_VARIABLES, &Flags::default());
    loaded.finish(Vec::new()).map_err(|errors| errors.to_string())
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|errors| panic!("{text}: {errors}"))
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = good("");
    assert_eq!(config.listen.tcp_keepalive, Some(Duration::from_secs(300)));
    assert_eq!(config.listen.client_output_limit, 1 << 30);
    assert_eq!(config.upstream.max_pinned, 10_000);
}

#[test]
fn keepalive_is_a_time_or_never() {
    for (text, time) in [
        ("1s", Some(1)),
        ("1000ms", Some(1)),
        ("75s", Some(75)),
        ("5m", Some(300)),
        ("2h", Some(7200)),
        ("32767s", Some(32_767)),
        ("0s", None),
        ("0ms", None),
        ("0h", None),
    ] {
        let config = good(&format!("[listen]\ntcp_keepalive = \"{text}\""));
        assert_eq!(config.listen.tcp_keepalive, time.map(Duration::from_secs), "{text}");
    }
}

#[test]
fn the_kernel_takes_no_longer_keepalive() {
    let error = read("[listen]\ntcp_keepalive = \"10h\"").unwrap_err();
    assert!(error.contains("proxy.toml:2") && error.contains("write at most \"32767s\""), "{error}");
}

#[test]
fn the_output_limit_is_a_size() {
    for (text, size) in [
        ("1mb", 1 << 20),
        ("1048576", 1 << 20),
        ("1024kb", 1 << 20),
        ("256mb", 256 << 20),
        ("4gb", 4 << 30),
        ("1000000000000", 1_000_000_000_000),
    ] {
        let config = good(&format!("[listen]\nclient_output_limit = \"{text}\""));
        assert_eq!(config.listen.client_output_limit, size, "{text}");
    }
}

#[test]
fn the_bound_of_pinned_connections_is_a_number() {
    for number in [1, 5, 10_000, 10_000_000] {
        assert_eq!(good(&format!("[upstream]\nmax_pinned = {number}")).upstream.max_pinned, number);
    }
}

#[test]
fn variables_say_the_same() {
    let variables = [
        ("RESCIND_LISTEN_TCP_KEEPALIVE", "0s"),
        ("RESCIND_LISTEN_CLIENT_OUTPUT_LIMIT", "2mb"),
        ("RESCIND_UPSTREAM_MAX_PINNED", "7"),
    ];
    let file = "[listen]\ntcp_keepalive = \"9s\"\nclient_output_limit = \"9mb\"\n[upstream]\nmax_pinned = 9";
    let read = |variables: &[(&str, &str)]| {
        config::parse("proxy.toml", file.as_bytes(), variables.iter().copied(), &Flags::default())
    };
    let config = read(&variables).finish(Vec::new()).unwrap();
    assert_eq!((config.listen.tcp_keepalive, config.listen.client_output_limit), (None, 2 << 20));
    assert_eq!(config.upstream.max_pinned, 7);
    let wrong = variables.map(|(name, _)| (name, "x"));
    let errors = read(&wrong).finish(Vec::new()).unwrap_err().to_string();
    assert_eq!(errors.lines().count(), 3, "{errors}");
    for (name, _) in variables {
        assert!(errors.contains(name), "{name}: {errors}");
    }
}

#[test]
fn wrong_values_are_told_with_what_to_write() {
    for (text, message) in [
        (
            "[listen]\ntcp_keepalive = \"999ms\"",
            "[listen] tcp_keepalive: \"999ms\" is too short; write at least \"1s\", or \"0s\" for never",
        ),
        (
            "[listen]\ntcp_keepalive = \"soon\"",
            "[listen] tcp_keepalive: \"soon\" is not a duration; write a whole number with ms, s, m or h, such as \
             \"5s\"",
        ),
        (
            "[listen]\ntcp_keepalive = \"\"",
            "[listen] tcp_keepalive: \"\" is not a duration; write a whole number with ms, s, m or h, such as \
             \"5s\"",
        ),
        (
            "[listen]\ntcp_keepalive = \"8761h\"",
            "[listen] tcp_keepalive: \"8761h\" is too long; write at most \"8760h\"",
        ),
        (
            "[listen]\ntcp_keepalive = 300",
            "[listen] tcp_keepalive: found a number; write a string in quotes: tcp_keepalive = \"300s\"",
        ),
        (
            "[listen]\ntcp_keepalive = false",
            "[listen] tcp_keepalive: found true or false; write a string in quotes: tcp_keepalive = \"300s\"",
        ),
        (
            "[listen]\ntcp_keep_alive = \"5s\"",
            "unknown key `tcp_keep_alive` in [listen]; did you mean `tcp_keepalive`?",
        ),
        (
            "[listen]\nclient_output_limit = \"1023kb\"",
            "[listen] client_output_limit: \"1023kb\" is too little; write at least \"1mb\"",
        ),
        (
            "[listen]\nclient_output_limit = \"0\"",
            "[listen] client_output_limit: \"0\" is too little; write at least \"1mb\"",
        ),
        (
            "[listen]\nclient_output_limit = \"1 gb\"",
            "[listen] client_output_limit: \"1 gb\" is not a size; write a whole number with kb, mb or gb, such as \
             \"256mb\"",
        ),
        (
            "[listen]\nclient_output_limit = \"9999999999gb\"",
            "[listen] client_output_limit: \"9999999999gb\" is too large; write a smaller one, such as \"1gb\"",
        ),
        (
            "[listen]\nclient_output_limit = 1073741824",
            "[listen] client_output_limit: found a number; write a string in quotes: client_output_limit = \"1gb\"",
        ),
        (
            "[listen]\noutput_limit = \"1gb\"",
            "unknown key `output_limit` in [listen]; write one of `address`, `max_clients`, `idle_timeout`, \
             `tcp_keepalive`, `client_output_limit`, `workers`",
        ),
        ("[upstream]\nmax_pinned = 0", "[upstream] max_pinned: 0 is too few; write 1 or more"),
        (
            "[upstream]\nmax_pinned = -1",
            "[upstream] max_pinned: \"-1\" is not a whole number from 0 on; write digits only",
        ),
        (
            "[upstream]\nmax_pinned = 10000001",
            "[upstream] max_pinned: 10000001 is too many; write at most 10000000",
        ),
        (
            "[upstream]\nmax_pinned = \"5\"",
            "[upstream] max_pinned: found a string; write a whole number: max_pinned = 10000",
        ),
        ("[upstream]\nmax_pined = 5", "unknown key `max_pined` in [upstream]; did you mean `max_pinned`?"),
        (
            "[listen]\nmax_pinned = 5",
            "unknown key `max_pinned` in [listen]; write one of `address`, `max_clients`, `idle_timeout`, \
             `tcp_keepalive`, `client_output_limit`, `workers`",
        ),
    ] {
        assert_eq!(read(text).unwrap_err(), format!("proxy.toml:2: {message}"), "{text}");
    }
}

#[test]
fn the_reference_file_names_them_with_their_defaults() {
    let reference = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml")).unwrap();
    for line in ["tcp_keepalive = \"300s\"", "client_output_limit = \"1gb\"", "max_pinned = 10000"] {
        let mut lines = reference.lines().map(|line| line.trim_start_matches("# "));
        assert!(lines.any(|found| found == line), "{line}");
    }
}
