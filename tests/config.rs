//! The configuration as its users meet it: the reference file, mistakes, overrides.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use rescind::config::{self, Config, Endpoint, Flags, Fsync, Loaded, Secret, UpstreamUrl};
use rescind::rules::spec::{Located, OnInvalidate, Problem, StaleFill};

const NO_VARIABLES: [(&str, &str); 0] = [];

fn read(text: &str) -> Loaded {
    config::parse("proxy.toml", text.as_bytes(), NO_VARIABLES, &Flags::default())
}

fn with_variables(text: &str, variables: &[(&str, &str)]) -> Loaded {
    config::parse("proxy.toml", text.as_bytes(), variables.iter().copied(), &Flags::default())
}

fn good(loaded: Loaded) -> Config {
    loaded.finish(Vec::new()).unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(loaded: Loaded) -> String {
    loaded.finish(Vec::new()).unwrap_err().to_string()
}

fn values(list: &[Located<String>]) -> Vec<&str> {
    list.iter().map(|located| located.value.as_str()).collect()
}

fn reference() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy.toml")).unwrap()
}

/// The line of the reference file that begins with `start`, counted from `after`.
fn line_of(start: &str) -> u32 {
    let at = reference().lines().position(|line| line.starts_with(start)).unwrap();
    u32::try_from(at + 1).unwrap()
}

#[test]
fn the_reference_file_is_a_working_example() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy.toml");
    let config = good(config::load(&path, NO_VARIABLES, &Flags::default()));
    let defaults = Config::default();
    assert_eq!(config.listen, defaults.listen);
    assert_eq!(config.upstream, defaults.upstream);
    assert_eq!(config.admin, defaults.admin);
    assert_eq!(config.journal, defaults.journal);
    assert_eq!(config.listen.address[0].to_string(), "127.0.0.1:6380");
    assert_eq!((config.listen.max_clients, config.listen.idle_timeout), (10_000, None));
    assert_eq!(config.upstream.url.to_string(), "redis://127.0.0.1:6379");
    assert_eq!(config.admin.address.to_string(), "127.0.0.1:9380");
    assert_eq!((config.journal.path.to_str(), config.journal.fsync), (Some("data/journal"), Fsync::Always));
    assert_eq!(config.journal.replay_window, Duration::from_secs(3600));
}

#[test]
fn the_reference_file_has_the_sample_rules_in_file_order() {
    let rules = good(read(&reference())).rules;
    assert_eq!((rules.prefix.as_str(), rules.databases), ("app:1:", None));
    let tags: Vec<(&str, usize)> = rules.tags.iter().map(|t| (t.name.value.as_str(), t.keys.len())).collect();
    let expected = [
        ("PersonalInfo", 3),
        ("SocialLink", 2),
        ("Post", 2),
        ("Tool", 2),
        ("AITool", 2),
        ("ContactMessage", 1),
        ("post:{id}", 2),
    ];
    assert_eq!(tags, expected);
    let post = &rules.tags[6];
    assert_eq!(values(&post.keys), ["post:{id}:*", "feed:*:{id}"]);
    assert_eq!((post.name.line, post.keys[1].line), (line_of("\"post:{id}\""), line_of("\"post:{id}\"")));

    let [home] = &rules.families[..] else { panic!("{:?}", rules.families) };
    assert_eq!((home.name.value.as_str(), values(&home.keys)), ("home", vec!["home_page_data_*"]));
    assert_eq!((home.on_invalidate, home.grace), (OnInvalidate::Delete, Duration::ZERO));
    assert_eq!((home.stale_fill, home.fill_window), (StaleFill::Protect, Duration::from_secs(5)));

    let [saved, virtual_key, cascade] = &rules.triggers[..] else { panic!("{:?}", rules.triggers) };
    assert_eq!(saved.name.as_ref().unwrap().value, "model saved");
    assert_eq!((saved.line, values(&saved.keys)), (line_of("[[trigger]]"), vec!["model:{model}:{pk}"]));
    assert!(saved.commands.is_empty(), "a library may send any");
    assert_eq!(values(&saved.invalidate), ["{model}", "post:{pk}"]);
    assert_eq!(
        (values(&virtual_key.keys), values(&virtual_key.invalidate)),
        (vec!["tag:{tag*}"], vec!["{tag*}"])
    );
    assert!(virtual_key.name.is_none() && virtual_key.commands.is_empty());
    assert_eq!((values(&cascade.tags), values(&cascade.invalidate)), (vec!["Post"], vec!["SiteMap"]));
}

#[test]
fn the_reference_file_names_every_key() {
    let reference = reference();
    for key in [
        "address",
        "max_clients",
        "idle_timeout",
        "workers",
        "url",
        "token",
        "prefix",
        "databases",
        "name",
        "keys",
        "on_invalidate",
        "grace",
        "stale_fill",
        "fill_window",
        "coalesce",
        "commands",
        "invalidate",
        "tags",
        "path",
        "fsync",
        "replay_window",
    ] {
        let mut lines = reference.lines().map(|line| line.trim_start_matches("# "));
        assert!(lines.any(|line| line.starts_with(&format!("{key} ="))), "{key}");
    }
    // The commented keys work too.
    let mut all = reference;
    for key in ["workers", "token", "databases"] {
        let commented = format!("# {key} =");
        assert!(all.contains(&commented), "{key}");
        all = all.replace(&commented, &format!("{key} ="));
    }
    let config = good(read(&all));
    assert_eq!(config.rules.databases, Some(vec![1]));
    assert!(config.admin.token.is_some());
}

#[test]
fn an_empty_file_is_the_defaults_without_rules() {
    for text in ["", "\u{feff}", "# nothing\r\n", "[listen]\n[tags]\n[keys]"] {
        let config = good(read(text));
        assert_eq!((config.listen, config.upstream), (Config::default().listen, Config::default().upstream));
        assert!(config.rules.tags.is_empty() && config.rules.families.is_empty());
        assert!(config.rules.triggers.is_empty() && config.rules.databases.is_none());
    }
}

#[test]
fn ten_mistakes_are_ten_problems_with_their_lines() {
    let text = r#"
[listen]
adress = ["127.0.0.1:6380"]
max_clients = "many"
idle_timeout = "5 minutes"

[upstream]
url = "rediss://:hunter2@redis:6380"

[admin]
address = "9380"

[keys]
databases = [0, "one"]

[tags]
Post = "home_*"
Tool = ["tools_*", 5]

[[family]]
name = "home"
on_invalidate = "remove"

[[trigger]]
keys = ["model:*"]

[journl]
path = "x"
"#;
    let expected = [
        "proxy.toml:3: unknown key `adress` in [listen]; did you mean `address`?",
        "proxy.toml:4: [listen] max_clients: found a string; write a whole number: max_clients = 10000",
        "proxy.toml:5: [listen] idle_timeout: \"5 minutes\" is not a duration; write a whole number with ms, s, m \
         or h, such as \"5s\"",
        "proxy.toml:8: [upstream] url: rediss:// is not supported by this version; write redis://host:port or \
         unix:///path",
        "proxy.toml:11: [admin] address: \"9380\" is not an address; write host:port or [IPv6]:port",
        "proxy.toml:14: [keys] databases: found a string; write a list of numbers: databases = [1]",
        "proxy.toml:17: [tags] Post: found a string; write a list of strings: Post = [\"post:{id}:*\"]",
        "proxy.toml:18: [tags] Tool: found a number; write a list of strings: Tool = [\"post:{id}:*\"]",
        "proxy.toml:20: [[family]] needs the patterns of its keys; write keys = [\"home_page_*\"]",
        "proxy.toml:22: [[family]] on_invalidate: \"remove\" is unknown; write \"delete\" or \"expire\"",
        "proxy.toml:24: [[trigger]] needs the tags it invalidates; write invalidate = [\"Post\"]",
        "proxy.toml:27: unknown section [journl]; did you mean [journal]?",
    ];
    let errors = errors(read(text));
    assert_eq!(errors.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn unknown_keys_name_what_is_known() {
    for (text, message) in [
        (
            "[listen]\ncoalesce = true",
            "2: unknown key `coalesce` in [listen]; write one of `address`, `max_clients`,",
        ),
        ("[admin]\ntokn = 'x'", "2: unknown key `tokn` in [admin]; did you mean `token`?"),
        (
            "[[family]]\nname='a'\nkeys=['a']\nstale-fill='off'",
            "4: unknown key `stale-fill` in [[family]]; did you",
        ),
        (
            "[[trigger]]\ntags=['a']\ninvalidates=['a']",
            "3: unknown key `invalidates` in [[trigger]]; did you mean",
        ),
        ("[[triggers]]\na=1", "1: unknown section [triggers]; did you mean [[trigger]]?"),
        ("url = 'x'", "1: unknown key `url` outside of any section; write one of [listen], [upstream],"),
        ("[cluster]", "1: unknown section [cluster]; write one of [listen],"),
        ("[upstream]\nurl.host = 'x'", "2: [upstream] url: found a table; write a string in quotes: url ="),
    ] {
        let errors = errors(read(text));
        assert!(
            errors.lines().any(|line| line.starts_with(&format!("proxy.toml:{message}"))),
            "{text}: {errors}"
        );
    }
}

#[test]
fn values_of_the_wrong_kind() {
    for (text, message) in [
        ("listen = 5", "1: listen: found a number; write it as a section, [listen]"),
        ("[trigger]\nkeys=['a']", "1: trigger: found a table; write each as [[trigger]]"),
        ("family = [1]", "1: family: found a number; write each as [[family]]"),
        ("[listen]\naddress = []", "2: [listen] address: the list is empty; write"),
        (
            "[listen]\naddress = [\n'a:1',\n'b'\n]",
            "4: [listen] address: \"b\" is not an address; write host:port",
        ),
        ("[listen]\nmax_clients = 0", "2: [listen] max_clients: 0 is too few; write 1 or more"),
        (
            "[listen]\nmax_clients = -1",
            "2: [listen] max_clients: \"-1\" is not a whole number from 0 on; write",
        ),
        (
            "[listen]\nmax_clients = 1.5",
            "2: [listen] max_clients: found a number with a fraction or an exponent; write",
        ),
        (
            "[listen]\nidle_timeout = 5",
            "2: [listen] idle_timeout: found a number; write a string in quotes: ",
        ),
        ("[listen]\nworkers = 99999", "2: [listen] workers: 99999 is too many; write at most 1024"),
        ("[admin]\ntoken = ''", "2: [admin] token: the token is empty; write"),
        (
            "[admin]\naddress = 'unix:/x'",
            "2: [admin] address: \"unix:/x\" is not an address; write host:port",
        ),
        (
            "[keys]\nprefix = true",
            "2: [keys] prefix: found true or false; write a string in quotes: prefix =",
        ),
        ("[keys]\ndatabases = [5000000000]", "2: [keys] databases: 5000000000 is not a database; write"),
        ("[keys]\ndatabases = []", "2: [keys] databases: the list is empty; write"),
        ("[tags]\na = ['']", "2: [tags] a: an empty string; write"),
        (
            "[[trigger]]\nkeys = ['k']\ninvalidate = ['T']\ncommands = ['set', 'get']",
            "4: [[trigger]] commands: \"get\" writes nothing",
        ),
        (
            "[[trigger]]\nkeys = ['k']\ninvalidate = ['T']\ncommands = ['HSTE', 'JSON.SET']",
            "4: [[trigger]] commands: \"HSTE\" is no command of Redis; write its name, such as \"HSET\"",
        ),
        (
            "[[trigger]]\nkeys = ['k']\ninvalidate = ['T']\ncommands = ['']",
            "4: [[trigger]] commands: \"\" is no command of Redis",
        ),
        (
            "[journal]\nfsync = 'Always'",
            "2: [journal] fsync: \"Always\" is unknown; write \"always\", \"everysec\"",
        ),
        (
            "[journal]\nreplay_window = 60",
            "2: [journal] replay_window: found a number; write a string in quotes: replay_window = \"1h\"",
        ),
        ("[journal]\nreplay_window = '1d'", "2: [journal] replay_window: \"1d\" is not a duration; write"),
        ("[[family]]\nname=''\nkeys=['a']", "2: [[family]] name: an empty string; write"),
        ("[[family]]\nkeys=['a']", "1: [[family]] needs a name for its metrics; write name ="),
        (
            "\n[[family]]\nname='a'\nkeys=['a']\nfill_window='0s'",
            "2: [[family]] has a fill_window of 0s; write",
        ),
        (
            "[[family]]\nname='a'\nkeys=['a']\ncoalesce='11s'",
            "4: [[family]] coalesce: \"11s\" is too long; write at most \"10s\"",
        ),
        (
            "[[family]]\nname='a'\nkeys=['a']\ncoalesce=250",
            "4: [[family]] coalesce: found a number; write a string in quotes: coalesce = \"250ms\"",
        ),
        ("[[trigger]]\ninvalidate=['a']", "1: [[trigger]] needs what fires it; write keys = "),
        ("[[trigger]]\ntags=['a']\ninvalidate=[]", "3: [[trigger]] invalidate: the list is empty; write"),
    ] {
        let errors = errors(read(text));
        assert!(errors.starts_with(&format!("proxy.toml:{message}")), "{text}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{text}: {errors}");
    }
}

#[test]
fn syntax_errors_have_a_line_and_do_not_hide_one_another() {
    for (text, message) in [
        ("[upstream]\nurl = \"redis://:hunter2@h\nx = 1", "2: not TOML: "),
        ("[listen", "1: not TOML: "),
        (
            "[tags]\npost:{id} = ['a']",
            "2: not TOML: a key without a value; write key = value, and in quotes a key",
        ),
        ("\n[listen]\nidle_timeout = 5s", "3: not TOML: a text without quotes; write"),
        ("[tags]\nA = ['a']\nA = ['b']", "3: this key or section stands twice; remove one"),
    ] {
        let errors = errors(read(text));
        assert!(errors.starts_with(&format!("proxy.toml:{message}")), "{text}: {errors}");
        assert!(!errors.contains("hunter2"), "{errors}");
    }
    let two = errors(read("[listen]\nidle_timeout = 5s\n\n[admin]\naddress = \"x\nz = 1"));
    assert_eq!(two.lines().count(), 2, "{two}");
    // A repeated key leaves the rest readable.
    let both = errors(read("[listen]\nworkers = 1\nworkers = 2\nport = 3"));
    assert!(both.contains("proxy.toml:3: ") && both.contains("proxy.toml:4: unknown key `port`"), "{both}");
}

#[test]
fn bytes_that_are_not_text_have_a_line() {
    let loaded = config::parse("proxy.toml", b"[tags]\nA = [\"\xff\"]", NO_VARIABLES, &Flags::default());
    assert_eq!(errors(loaded), "proxy.toml:2: not UTF-8 text; save the file as UTF-8");
}

#[test]
fn a_missing_file_is_one_line() {
    let variables = [("RESCIND_LISTEN_WORKERS", "x")];
    let loaded = config::load(Path::new("no/such.toml"), variables, &Flags::default());
    assert_eq!(
        errors(loaded),
        "no/such.toml: no such file; name another with --config FILE or RESCIND_CONFIG"
    );
    let directory = config::load(Path::new(env!("CARGO_MANIFEST_DIR")), NO_VARIABLES, &Flags::default());
    assert!(errors(directory).contains("cannot be read: "));
}

#[test]
fn addresses_of_all_kinds() {
    let config = good(read(
        "[listen]\naddress = ['[::1]:6380', 'unix:/run/rescind.sock', 'localhost:0']\n\
         [upstream]\nurl = 'unix://me:hunter2@/run/redis.sock?db=3'\n[admin]\naddress = '[::]:9380'",
    ));
    let shown: Vec<String> = config.listen.address.iter().map(Endpoint::to_string).collect();
    assert_eq!(shown, ["[::1]:6380", "unix:/run/rescind.sock", "localhost:0"]);
    assert!(!config.admin.address.is_loopback());
    let UpstreamUrl::Server(server) = &config.upstream.url else { panic!() };
    assert_eq!((server.address.clone(), server.database), (Endpoint::Unix("/run/redis.sock".into()), 3));
    let credentials = server.credentials.as_ref().unwrap();
    assert_eq!((credentials.user.as_deref(), credentials.password.expose()), (Some("me"), "hunter2"));
    // One address needs no brackets.
    assert_eq!(good(read("[listen]\naddress = 'unix:/x'")).listen.address, [Endpoint::Unix("/x".into())]);
    assert_eq!(good(read("[upstream]\nurl = 'spawn'")).upstream.url, UpstreamUrl::Spawn);
}

#[test]
fn an_address_serves_one_purpose() {
    let twice = "[listen]\naddress = [\n  \"h:1\",\n  \"unix:/a\",\n  \"h:1\",\n  \"unix:/a\"]\n";
    let told = errors(read(twice));
    assert!(told.contains("proxy.toml:5: [listen] address: h:1 stands twice"), "{told}");
    assert!(told.contains("proxy.toml:6: [listen] address: unix:/a stands twice"), "{told}");
    let told = errors(read("[listen]\naddress = \"h:1\"\n[admin]\naddress = \"h:1\"\n"));
    assert!(told.contains("proxy.toml:4: [admin] address: h:1 is where clients connect"), "{told}");
    let told = errors(read("[admin]\naddress = \"127.0.0.1:6380\"\n"));
    assert!(told.contains("proxy.toml:2: [admin] address"), "{told}");
    let told = errors(with_variables("", &[("RESCIND_LISTEN_ADDRESS", "h:1,h:1")]));
    assert!(told.contains("RESCIND_LISTEN_ADDRESS: [listen] address: h:1 stands twice"), "{told}");
    let flags = Flags { listen: vec!["h:1".to_owned(), "h:1".to_owned()], ..Flags::default() };
    let told = errors(config::parse("proxy.toml", b"", NO_VARIABLES, &flags));
    assert!(told.contains("--listen: [listen] address: h:1 stands twice"), "{told}");
    // What the system chooses is never the same.
    good(read("[listen]\naddress = [\"h:0\", \"h:0\"]\n[admin]\naddress = \"h:0\"\n"));
}

#[test]
fn all_mistakes_in_a_variable_are_told() {
    let told = errors(with_variables("", &[("RESCIND_LISTEN_ADDRESS", "a, h:1, b")]));
    for item in ["\"a\"", "\"b\""] {
        let line = told.lines().find(|line| line.contains(item));
        assert!(line.is_some_and(|line| line.starts_with("RESCIND_LISTEN_ADDRESS: ")), "{item} in {told}");
    }
}

#[test]
fn durations() {
    let idle = |text: &str| good(read(&format!("[listen]\nidle_timeout = '{text}'"))).listen.idle_timeout;
    assert_eq!(idle("0s"), None);
    assert_eq!(idle("250ms"), Some(Duration::from_millis(250)));
    assert_eq!(idle("2m"), Some(Duration::from_secs(120)));
    let family = "[[family]]\nname='a'\nkeys=['a']\non_invalidate='expire'\ngrace='1h'\nstale_fill='off'\n\
                  fill_window='0s'";
    let family = &good(read(family)).rules.families[0];
    assert_eq!((family.on_invalidate, family.grace), (OnInvalidate::Expire, Duration::from_secs(3600)));
    assert_eq!((family.stale_fill, family.fill_window), (StaleFill::Off, Duration::ZERO));
    assert_eq!(family.coalesce, Duration::ZERO);
    for (text, milliseconds) in [("0s", 0), ("250ms", 250), ("10s", 10_000), ("10000ms", 10_000)] {
        let family = format!("[[family]]\nname='a'\nkeys=['a']\ncoalesce='{text}'");
        assert_eq!(
            good(read(&family)).rules.families[0].coalesce,
            Duration::from_millis(milliseconds),
            "{text}"
        );
    }
}

#[test]
fn variables_override_every_plain_value() {
    let config = good(with_variables(
        &reference(),
        &[
            ("RESCIND_LISTEN_ADDRESS", "0.0.0.0:1, unix:/x"),
            ("RESCIND_LISTEN_MAX_CLIENTS", "7"),
            ("RESCIND_LISTEN_IDLE_TIMEOUT", "5s"),
            ("RESCIND_LISTEN_WORKERS", "3"),
            ("RESCIND_UPSTREAM_URL", "redis://other"),
            ("RESCIND_ADMIN_ADDRESS", "0.0.0.0:2"),
            ("RESCIND_ADMIN_TOKEN", "hunter2"),
            ("RESCIND_KEYS_PREFIX", ""),
            ("RESCIND_KEYS_DATABASES", "1,2"),
            ("RESCIND_JOURNAL_PATH", "/j"),
            ("RESCIND_JOURNAL_FSYNC", "never"),
            ("RESCIND_JOURNAL_REPLAY_WINDOW", "0s"),
        ],
    ));
    assert_eq!(config.listen.address.len(), 2);
    assert_eq!((config.listen.max_clients, config.listen.workers), (7, 3));
    assert_eq!(config.listen.idle_timeout, Some(Duration::from_secs(5)));
    assert_eq!(config.upstream.url.to_string(), "redis://other:6379");
    assert_eq!(config.admin.address.to_string(), "0.0.0.0:2");
    assert_eq!(config.admin.token, Some(Secret::new("hunter2")));
    assert_eq!((config.rules.prefix.as_str(), config.rules.databases.clone()), ("", Some(vec![1, 2])));
    assert_eq!((config.journal.path.to_str(), config.journal.fsync), (Some("/j"), Fsync::Never));
    assert_eq!(config.journal.replay_window, Duration::ZERO);
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn misspelt_variables_are_pointed_out() {
    let loaded = with_variables(
        "",
        &[
            ("RESCIND_UPSTREAM_URI", "redis://other"),
            ("RESCIND_LISTEN_ADRESS", "0.0.0.0:1"),
            ("RESCIND_Listen_Workers", "3"),
            ("RESCIND_LISTEN_MAX_CLIENTS", "7"),
            ("RESCIND_CONFIG", "f"),
            ("RESCIND_LOG", "info"),
            ("RESCIND_SERVICE_HOST", "10.0.0.1"),
            ("RESCIND_PORT_6380_TCP_ADDR", "10.0.0.1"),
        ],
    );
    let notes = [
        "RESCIND_LISTEN_ADRESS: note: not known and ignored; did you mean RESCIND_LISTEN_ADDRESS?",
        "RESCIND_Listen_Workers: note: not known and ignored; did you mean RESCIND_LISTEN_WORKERS?",
        "RESCIND_UPSTREAM_URI: note: not known and ignored; did you mean RESCIND_UPSTREAM_URL?",
    ];
    assert_eq!(loaded.notes, notes);
    assert_eq!(good(loaded).listen.max_clients, 7);
}

#[test]
fn wrong_variables_are_named_and_foreign_ones_ignored() {
    let text = "[listen]\nworkers = 'x'";
    let errors = errors(with_variables(
        text,
        &[
            ("RESCIND_UPSTREAM_URL", "redis://:hunter2@host:port"),
            ("RESCIND_KEYS_DATABASES", "1,x"),
            ("RESCIND_LISTEN_ADDRESS", "redis://:hunter2@h,a:1"),
            ("RESCIND_ADMIN_TOKEN", "hunter2 hunter2"),
            ("RESCIND_ADMIN_ADDRESS", ""),
            ("RESCIND_SERVICE_HOST", "10.0.0.1"),
            ("RESCIND_PORT", "tcp://10.0.0.1:6380"),
            ("LISTEN_WORKERS", "y"),
        ],
    ));
    let starts: Vec<&str> = errors.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let expected = [
        "proxy.toml:2",
        "RESCIND_ADMIN_TOKEN",
        "RESCIND_KEYS_DATABASES",
        "RESCIND_LISTEN_ADDRESS",
        "RESCIND_UPSTREAM_URL",
    ];
    assert_eq!(starts, expected, "{errors}");
    assert!(!errors.contains("hunter2"), "{errors}");
}

#[test]
fn a_wrong_prefix_is_told_where_it_stands() {
    for (prefix, part) in [("a{b}", "{b}"), ("a[b", "\\["), ("{b", "\\{"), ("[a\nb", "\\[")] {
        let text = format!("[listen]\nworkers = 1\n[keys]\nprefix = '''{prefix}'''");
        let found = errors(config::parse("proxy.toml", text.as_bytes(), NO_VARIABLES, &Flags::default()));
        assert!(found.starts_with("proxy.toml:4: [keys] prefix: ") && found.lines().count() == 1, "{found}");
        assert!(found.contains(part) && found.contains("write"), "{found}");
        let found = errors(with_variables(&text.replace(prefix, "app:"), &[("RESCIND_KEYS_PREFIX", prefix)]));
        assert!(found.starts_with("RESCIND_KEYS_PREFIX: ") && found.lines().count() == 1, "{found}");
        assert!(found.contains(part) && found.contains("write"), "{found}");
    }
}

#[cfg(unix)]
#[test]
fn variables_that_are_not_text() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let broken = || OsString::from_vec(vec![0xff]);
    let variables =
        [(OsString::from("RESCIND_KEYS_PREFIX"), broken()), (broken(), broken()), ("X".into(), broken())];
    let loaded = config::parse("proxy.toml", b"", variables, &Flags::default());
    assert_eq!(errors(loaded), "RESCIND_KEYS_PREFIX: not UTF-8 text; write it in UTF-8");
}

#[test]
fn flags_override_variables() {
    let variables = [
        ("RESCIND_LISTEN_ADDRESS", "a:1"),
        ("RESCIND_UPSTREAM_URL", "redis://a"),
        ("RESCIND_ADMIN_ADDRESS", "a:2"),
    ];
    let flags = Flags {
        listen: vec!["b:1".into(), "b:2".into()],
        upstream: Some(Secret::new("spawn")),
        admin: Some("b:3".into()),
    };
    let config = good(config::parse("proxy.toml", reference().as_bytes(), variables, &flags));
    let shown: Vec<String> = config.listen.address.iter().map(Endpoint::to_string).collect();
    assert_eq!(shown, ["b:1", "b:2"]);
    assert_eq!((config.upstream.url, config.admin.address.port), (UpstreamUrl::Spawn, 3));

    let flags = Flags {
        listen: vec!["redis://:hunter2@h:1".into()],
        upstream: Some(Secret::new("rediss://:hunter2@h")),
        admin: Some("unix:/x".into()),
    };
    let errors = errors(config::parse("proxy.toml", b"x = 1", NO_VARIABLES, &flags));
    let starts: Vec<&str> = errors.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(starts, ["proxy.toml:1", "--admin", "--listen", "--upstream"], "{errors}");
    assert!(!errors.contains("hunter2") && !format!("{:?}", flags.upstream).contains("hunter2"), "{errors}");

    let flags = Flags { listen: vec!["127.0.0.1:1,127.0.0.1:2".into()], ..Flags::default() };
    let told = self::errors(config::parse("proxy.toml", b"", NO_VARIABLES, &flags));
    assert!(told.contains("give --listen once for each address"), "{told}");
}

#[test]
fn problems_of_the_rules_take_their_place() {
    let problem = |line, message: &str| Problem { line, message: message.to_owned() };
    let loaded = read("[listen]\nport = 1\n[tags]\nA = ['[']\n[keys]\nport = 1");
    let errors = loaded.finish(vec![problem(4, "bad pattern"), problem(0, "bad prefix")]).unwrap_err();
    let shown = errors.to_string();
    let starts: Vec<&str> = shown.lines().map(|line| &line[..line.len().min(24)]).collect();
    assert_eq!(starts[0], "proxy.toml: bad prefix");
    assert_eq!(starts[2], "proxy.toml:4: bad patter");
    assert_eq!(errors.problems.len(), 4, "{errors}");
}

/// Text that is nearly a configuration.
fn nearly() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        "\\[\\[?(listen|upstream|admin|keys|tags|family|trigger|journal)\\]?\\]",
        "(address|url|token|prefix|databases|name|keys|grace|invalidate|idle_timeout|max_clients) = ",
        "\"(redis|unix|rediss)://[a-z:@%/?#0-9]{0,12}\"",
        "[\"'\\[\\]{},=.\n 0-9a-z_+%-]{0,6}",
        Just("\n".to_owned()),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,200}", nearly in nearly()) {
        for bytes in [&bytes[..], text.as_bytes(), nearly.as_bytes()] {
            let loaded = config::parse("proxy.toml", bytes, NO_VARIABLES, &Flags::default());
            let newlines = bytes.iter().filter(|b| **b == b'\n').count();
            if let Err(errors) = loaded.finish(Vec::new()) {
                // One line each, and each line exists.
                prop_assert_eq!(errors.to_string().lines().count(), errors.problems.len());
                for problem in &errors.problems {
                    if let config::Place::Line(line) = problem.place {
                        prop_assert!(line >= 1 && line as usize <= newlines + 1);
                    }
                }
            }
        }
    }

    #[test]
    fn no_variable_panics(value in ".{0,40}") {
        let names = ["LISTEN_ADDRESS", "LISTEN_MAX_CLIENTS", "LISTEN_IDLE_TIMEOUT", "UPSTREAM_URL", "ADMIN_ADDRESS",
            "ADMIN_TOKEN", "KEYS_PREFIX", "KEYS_DATABASES", "JOURNAL_PATH", "JOURNAL_FSYNC", "JOURNAL_REPLAY_WINDOW"];
        let variables = names.map(|name| (format!("RESCIND_{name}"), value.clone()));
        let flags = Flags { listen: vec![value.clone()], upstream: Some(Secret::new(value.clone())), admin: Some(value) };
        let _ = config::parse("proxy.toml", b"", variables, &flags);
    }
}
