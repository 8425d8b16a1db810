//! Framing as a whole: any split gives the same requests and replies, and other decoders agree.

#![allow(clippy::unwrap_used)]

use bytes::BytesMut;
use proptest::prelude::*;
use redis_protocol::resp2::decode::decode_range as decode2;
use redis_protocol::resp2::types::OwnedFrame;
use redis_protocol::resp3::decode::complete::decode_range as decode3;
use rescind::resp::{
    Limits, NotResp, Parsed, ProtocolError, ReplyFramer, RequestParser, encode, whole_value,
};

type Request = Vec<Vec<u8>>;

/// What was found in some bytes: the requests, how many bytes they took, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Found {
    requests: Vec<Request>,
    used: usize,
    error: Option<ProtocolError>,
}

/// Sizes of the portions in which bytes arrive, over and over.
fn portions() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![Just(1), 1..8usize, 1..200usize], 1..30)
}

fn portion(sizes: &[usize], n: usize) -> usize {
    sizes[n % sizes.len()]
}

/// Parses bytes that arrive in portions. The buffer always begins with the current request.
fn requests(bytes: &[u8], sizes: &[usize], limits: &Limits) -> Found {
    let (mut parser, mut found, mut end) = (RequestParser::default(), Found::default(), 0);
    for n in 0.. {
        end = (end + portion(sizes, n)).min(bytes.len());
        loop {
            let buf = &bytes[found.used..end];
            let parsed = parser.parse(buf, limits);
            // Memory follows what has arrived, not what is claimed. The shortest argument takes two bytes.
            assert!(parser.spans().len() <= buf.len() / 2 + 1);
            match parsed {
                Parsed::Request { len, inline } => {
                    assert!(len <= buf.len());
                    let request = parser.args(&buf[..len], inline);
                    assert!(!request.is_empty() && request.iter().map(<[u8]>::len).sum::<usize>() <= len);
                    found.requests.push(request.iter().map(<[u8]>::to_vec).collect());
                    found.used += len;
                }
                Parsed::Nothing { len } => {
                    assert!(0 < len && len <= buf.len());
                    found.used += len;
                }
                Parsed::Incomplete => break,
                Parsed::Error(error) => {
                    found.error = Some(error);
                    return found;
                }
            }
        }
        if end == bytes.len() {
            break;
        }
    }
    found
}

fn multibulk(request: &Request) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode::request(&mut out, request);
    out.to_vec()
}

/// The request as one line, every argument quoted one way or the other.
fn inline(request: &Request, style: u8) -> Vec<u8> {
    let mut out = vec![];
    for arg in request {
        let bare = !arg.is_empty() && arg.iter().all(u8::is_ascii_alphanumeric);
        match style % 3 {
            0 if bare => out.extend_from_slice(arg),
            1 if !arg.iter().any(|b| matches!(b, b'\'' | b'\\' | b'\n' | 0)) => {
                out.extend([b"'", &arg[..], b"'"].concat());
            }
            _ => {
                let hex: String = arg.iter().map(|b| format!("\\x{b:02X}")).collect();
                out.extend(format!("\"{hex}\"").bytes());
            }
        }
        out.push(if style & 4 == 0 { b' ' } else { b'\t' });
    }
    out.extend_from_slice(if style & 8 == 0 { b"\r\n" } else { b"\n" });
    out
}

/// A pipeline: its bytes and the requests in it.
fn pipeline() -> impl Strategy<Value = (Vec<u8>, Vec<Request>)> {
    let arg = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..40),
        3 => "[a-zA-Z0-9:]{1,12}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 500..3000),
    ];
    let request = prop::collection::vec(arg, 1..6);
    let message = prop_oneof![
        4 => request.clone().prop_map(|request| (multibulk(&request), Some(request))),
        3 => (request, any::<u8>()).prop_map(|(request, style)| (inline(&request, style), Some(request))),
        1 => prop::sample::select(vec!["\r\n", "\n", " \t\r\n", "*0\r\n", "*-1\r\n", "*-99\r\n"])
            .prop_map(|nothing| (nothing.as_bytes().to_vec(), None)),
    ];
    prop::collection::vec(message, 1..8).prop_map(|messages| {
        let bytes = messages.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect();
        (bytes, messages.into_iter().filter_map(|(_, request)| request).collect())
    })
}

/// Bytes that look like the protocol here and there.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "*",
        "$",
        "\r\n",
        "\r",
        "\n",
        "*1\r\n",
        "*3\r\n",
        "*2147483647\r\n",
        "*2147483648\r\n",
        "$0\r\n",
        "$3\r\n",
        "$-1\r\n",
        "$16385\r\n",
        "$536870912\r\n",
        "abc\r\n",
        "'",
        "\"",
        "\\x",
        "GET k\r\n",
        "+OK\r\n",
        "-ERR\r\n",
        ":5\r\n",
        "%1\r\n",
        "|1\r\n",
        "~2\r\n",
        ">1\r\n",
        "=7\r\ntxt:abc\r\n",
        "!1\r\n",
        "_\r\n",
        "#t\r\n",
        ",1\r\n",
        "(1\r\n",
        "$4294967295\r\n",
        "*4294967295\r\n",
        "%4294967295\r\n",
        "*-1\r\n",
        "0",
        "1",
        "-",
        "\0",
    ];
    let word = prop_oneof![
        4 => prop::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..12),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_requests((bytes, expected) in pipeline(), sizes in portions()) {
        let whole = requests(&bytes, &[bytes.len()], &Limits::NORMAL);
        prop_assert_eq!(&whole.requests, &expected);
        prop_assert_eq!((whole.used, whole.error), (bytes.len(), None));
        prop_assert_eq!(requests(&bytes, &sizes, &Limits::NORMAL), whole);
    }

    #[test]
    fn a_request_that_is_not_whole_is_not_found((bytes, _) in pipeline(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(bytes.len());
        let found = requests(&bytes[..cut], &[cut.max(1)], &Limits::NORMAL);
        prop_assert_eq!(found.error, None);
        prop_assert!(found.used <= cut);
        // What is left over is the start of the next one.
        let rest = requests(&bytes[found.used..], &[bytes.len()], &Limits::NORMAL);
        let whole = requests(&bytes, &[bytes.len()], &Limits::NORMAL);
        prop_assert_eq!([found.requests, rest.requests].concat(), whole.requests);
    }

    #[test]
    fn garbage_ends_the_same_however_it_arrives(bytes in garbage(), sizes in portions(), anonymous in any::<bool>()) {
        let limits = if anonymous { Limits::UNAUTHENTICATED } else { Limits::NORMAL };
        let whole = requests(&bytes, &[bytes.len().max(1)], &limits);
        prop_assert_eq!(requests(&bytes, &sizes, &limits), whole);
    }

    #[test]
    fn requests_read_as_another_decoder_reads_them(
        request in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..8),
    ) {
        let bytes = multibulk(&request);
        let (frame, length) = redis_protocol::resp2::decode::decode(&bytes).unwrap().unwrap();
        let OwnedFrame::Array(frames) = frame else { panic!("{frame:?}") };
        let decoded: Request = frames.into_iter().map(|frame| match frame {
            OwnedFrame::BulkString(bytes) => bytes,
            other => panic!("{other:?}"),
        }).collect();
        let found = requests(&bytes, &[7], &Limits::NORMAL);
        prop_assert_eq!((found.requests, found.used), (vec![decoded], length));
    }
}

/// The texts are those of `networking.c`, without `-ERR ` and CRLF.
#[test]
fn protocol_errors_read_as_those_of_redis() {
    let long = "9".repeat(70_000);
    let table: &[(&str, &str)] = &[
        ("*a\r\n", "invalid multibulk length"),
        ("*\r\n", "invalid multibulk length"),
        ("*+1\r\n", "invalid multibulk length"),
        ("*01\r\n", "invalid multibulk length"),
        ("* 1\r\n", "invalid multibulk length"),
        ("*1 \r\n", "invalid multibulk length"),
        ("*2147483648\r\n", "invalid multibulk length"),
        ("*99999999999999999999\r\n", "invalid multibulk length"),
        ("*1\r\n+OK\r\n", "expected '$', got '+'"),
        ("*1\r\n\r\n", "expected '$', got ' '"),
        ("*2\r\n$3\r\nGET\r\nkey\r\n", "expected '$', got 'k'"),
        ("*1\r\n$\r\n", "invalid bulk length"),
        ("*1\r\n$x\r\n", "invalid bulk length"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$03\r\n", "invalid bulk length"),
        ("*1\r\n$536870913\r\n", "invalid bulk length"),
        ("*1\r\n$9223372036854775807\r\n", "invalid bulk length"),
        ("*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
        ("GET \"k\r\n", "unbalanced quotes in request"),
        ("GET 'k'x\r\n", "unbalanced quotes in request"),
    ];
    let mut table: Vec<(String, &str)> =
        table.iter().map(|(input, text)| (input.to_string(), *text)).collect();
    table.push((long.clone(), "too big inline request"));
    table.push((format!("*{long}"), "too big mbulk count string"));
    table.push((format!("*1\r\n${long}"), "too big bulk count string"));
    for (input, text) in table {
        for step in [1 + input.len() / 1000, 1000, input.len()] {
            let found = requests(input.as_bytes(), &[step], &Limits::NORMAL);
            // The byte that is wrong is repeated; an error reply has no room for line breaks.
            let error = found.error.map(|error| error.to_string().replace('\r', " "));
            assert_eq!(error, Some(format!("Protocol error: {text}")), "{:.40} by {step}", input);
        }
    }
}

#[test]
fn before_authentication_the_limits_are_those_of_redis() {
    for (input, text) in [
        ("*11\r\n", Some("unauthenticated multibulk length")),
        ("*10\r\n", None),
        ("*1\r\n$16385\r\n", Some("unauthenticated bulk length")),
        ("*1\r\n$16384\r\n", None),
        ("*1\r\n$536870913\r\n", Some("invalid bulk length")),
    ] {
        let error = requests(input.as_bytes(), &[1], &Limits::UNAUTHENTICATED).error;
        let expected = text.map(|text| format!("Protocol error: {text}"));
        assert_eq!(error.map(|error| error.to_string()), expected, "{input:?}");
        assert_eq!(requests(input.as_bytes(), &[1], &Limits::NORMAL).error.is_some(), input.contains("913"));
    }
}

/// A RESP value.
#[derive(Clone, Debug)]
enum Value {
    /// One line: type byte, text, and how its head shows.
    Line(char, String, &'static str),
    Body(char, Vec<u8>),
    /// Array, set, push: the values; map: keys and values in turn.
    Aggregate(char, Vec<Value>),
    /// Keys and values in turn, and what they describe.
    Described(Vec<Value>, Box<Value>),
}

impl Value {
    /// Appends the bytes to `out` and the heads, with their depths, to `heads`.
    fn write(&self, depth: u32, out: &mut Vec<u8>, heads: &mut Vec<(u32, String)>) {
        let mut head = |kind: char, text: &dyn std::fmt::Display, shown: String| {
            out.extend(format!("{kind}{text}\r\n").bytes());
            heads.push((depth, shown));
        };
        match self {
            Value::Line(kind, text, "text") => {
                let name = if *kind == '+' { "Simple" } else { "Error" };
                head(*kind, text, format!("{name}({:?})", text.as_bytes()));
            }
            Value::Line(kind, text, "") => head(*kind, text, format!("Int({text})")),
            Value::Line(kind, text, shown) => head(*kind, text, (*shown).to_owned()),
            Value::Body(kind, body) => {
                let name = match kind {
                    '$' => "Bulk",
                    '!' => "BlobError",
                    _ => "Verbatim",
                };
                head(*kind, &body.len(), format!("{name}({})", body.len()));
                out.extend_from_slice(body);
                out.extend_from_slice(b"\r\n");
            }
            Value::Aggregate(kind, values) => {
                let (name, count) = match kind {
                    '*' => ("Array", values.len()),
                    '~' => ("Set", values.len()),
                    '>' => ("Push", values.len()),
                    _ => ("Map", values.len() / 2),
                };
                head(*kind, &count, format!("{name}({count})"));
                values.iter().for_each(|value| value.write(depth + 1, out, heads));
            }
            Value::Described(by, value) => {
                head('|', &(by.len() / 2), format!("Attribute({})", by.len() / 2));
                by.iter().for_each(|value| value.write(depth + 1, out, heads));
                value.write(depth, out, heads);
            }
        }
    }
}

fn line(
    kind: char,
    shown: &'static str,
    text: impl Strategy<Value = String> + 'static,
) -> BoxedStrategy<Value> {
    text.prop_map(move |text| Value::Line(kind, text, shown)).boxed()
}

fn body(kind: char) -> BoxedStrategy<Value> {
    prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n')], 0..80)
        .prop_map(move |body| Value::Body(kind, body))
        .boxed()
}

/// What RESP2 and RESP3 share; other decoders take any of these as keys.
fn common() -> BoxedStrategy<Value> {
    prop_oneof![
        line('+', "text", "[a-zA-Z0-9 ]{0,12}"),
        line(':', "", any::<i64>().prop_map(|n| n.to_string())),
        body('$'),
    ]
    .boxed()
}

fn resp2() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => common(),
        1 => line('-', "text", "[A-Z]{3,8} [a-z ]{0,20}"),
        1 => Just(Value::Line('$', "-1".into(), "Null")),
        1 => Just(Value::Line('*', "-1".into(), "Null")),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop::collection::vec(inner, 0..6).prop_map(|values| Value::Aggregate('*', values))
    })
}

fn pairs(key: BoxedStrategy<Value>, value: BoxedStrategy<Value>) -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec((key, value), 0..4)
        .prop_map(|pairs| pairs.into_iter().flat_map(|(key, value)| [key, value]).collect())
}

/// RESP3 values. `wild`: anything may be a key or be described, also where other decoders refuse it.
fn resp3(wild: bool) -> impl Strategy<Value = Value> {
    let verbatim = prop::collection::vec(any::<u8>(), 0..40)
        .prop_map(|text| Value::Body('=', [b"txt:".as_slice(), &text].concat()));
    let leaf = prop_oneof![
        4 => common(),
        1 => line('-', "text", "[A-Z]{3,8} [a-z ]{0,20}"),
        1 => Just(Value::Line('_', String::new(), "Null")),
        1 => prop_oneof![Just(("t", "Bool(true)")), Just(("f", "Bool(false)"))]
            .prop_map(|(text, shown)| Value::Line('#', text.into(), shown)),
        1 => line(',', "Double", prop_oneof!["-?[0-9]{1,5}\\.[0-9]{1,5}", Just("inf".into()), Just("-inf".into())]),
        1 => line('(', "BigNumber", "-?[1-9][0-9]{20,60}"),
        1 => body('!'),
        1 => verbatim,
    ];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        let inner = inner.boxed();
        let key = if wild { inner.clone() } else { common() };
        let described = if wild { inner.clone() } else { common() };
        let list = |kind, of: &BoxedStrategy<Value>| {
            prop::collection::vec(of.clone(), 0..6).prop_map(move |values| Value::Aggregate(kind, values))
        };
        prop_oneof![
            list('*', &inner),
            list('>', &inner),
            list('~', &key),
            pairs(key.clone(), inner.clone()).prop_map(|pairs| Value::Aggregate('%', pairs)),
            (pairs(key, inner.clone()), described).prop_map(|(by, value)| Value::Described(by, value.into())),
        ]
    })
}

/// Ends of the replies in `bytes`, and the heads in them.
type Replies = (Vec<usize>, Vec<(u32, String)>);

fn replies(bytes: &[u8], sizes: &[usize]) -> Result<Replies, NotResp> {
    let (mut framer, mut from, mut end) = (ReplyFramer::default(), 0, 0);
    let (mut ends, mut heads) = (vec![], vec![]);
    for n in 0.. {
        end = (end + portion(sizes, n)).min(bytes.len());
        loop {
            let progress =
                framer.advance(&bytes[from..end], |depth, head| heads.push((depth, format!("{head:?}"))))?;
            from += progress.consumed;
            assert!(from <= end);
            if !progress.done {
                break;
            }
            ends.push(from);
        }
        if end == bytes.len() {
            break;
        }
    }
    Ok((ends, heads))
}

/// What is seen at one look to be a whole value is what the framer finds. Says whether it is seen.
fn check_at_one_look(bytes: &[u8]) -> bool {
    let Some((head, length)) = whole_value(bytes) else { return false };
    let mut heads = vec![];
    let progress =
        ReplyFramer::default().advance(bytes, |depth, head| heads.push((depth, format!("{head:?}"))));
    let progress = progress.unwrap();
    assert_eq!((progress.consumed, progress.done), (length, true));
    assert_eq!(heads, [(0, format!("{head:?}"))]);
    true
}

/// Several values one behind the other, in any portions: their ends and heads must come out.
fn check_replies(values: &[Value], sizes: &[usize]) -> Vec<Vec<u8>> {
    let (mut all, mut ends, mut heads, mut each) = (vec![], vec![], vec![], vec![]);
    for value in values {
        let mut bytes = vec![];
        value.write(0, &mut bytes, &mut heads);
        all.extend_from_slice(&bytes);
        ends.push(all.len());
        each.push(bytes);
    }
    let expected = Ok((ends, heads));
    assert_eq!(replies(&all, &[all.len()]), expected);
    assert_eq!(replies(&all, sizes), expected);
    each
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn resp2_replies_end_where_another_decoder_says(
        values in prop::collection::vec(resp2(), 1..4),
        sizes in portions(),
    ) {
        for bytes in check_replies(&values, &sizes) {
            let (_, length) = decode2(&bytes).unwrap().unwrap();
            prop_assert_eq!(length, bytes.len());
        }
    }

    #[test]
    fn resp3_replies_end_where_another_decoder_says(
        values in prop::collection::vec(resp3(false), 1..4),
        sizes in portions(),
    ) {
        for bytes in check_replies(&values, &sizes) {
            let (_, length) = decode3(&bytes).unwrap().unwrap();
            prop_assert_eq!(length, bytes.len());
        }
    }

    #[test]
    fn resp3_replies_of_any_shape(values in prop::collection::vec(resp3(true), 1..4), sizes in portions()) {
        for bytes in check_replies(&values, &sizes) {
            if let Ok(decoded) = decode3(&bytes) {
                prop_assert_eq!(decoded.map(|(_, length)| length), Some(bytes.len()));
            }
        }
    }

    #[test]
    fn a_reply_that_is_not_whole_does_not_end(value in resp3(true), cut in any::<prop::sample::Index>()) {
        let (mut bytes, mut heads) = (vec![], vec![]);
        value.write(0, &mut bytes, &mut heads);
        check_at_one_look(&bytes);
        let cut = cut.index(bytes.len());
        prop_assert!(!check_at_one_look(&bytes[..cut]));
        prop_assert_eq!(replies(&bytes[..cut], &[cut.max(1)]).map(|(ends, _)| ends), Ok(vec![]));
    }

    #[test]
    fn frequent_replies_are_seen_at_one_look(length in 0..3000usize, number in 0..10_000_000u32, behind in garbage()) {
        let bulk = [format!("${length}\r\n").as_bytes(), &vec![b'x'; length], b"\r\n"].concat();
        let number = format!(":{number}\r\n").into_bytes();
        for reply in [bulk, number, b"+OK\r\n".to_vec(), b"$-1\r\n".to_vec()] {
            prop_assert_eq!(whole_value(&reply).map(|(_, length)| length), Some(reply.len()));
            prop_assert!(check_at_one_look(&[reply, behind.clone()].concat()));
        }
    }

    #[test]
    fn garbage_is_no_reply_however_it_arrives(bytes in garbage(), sizes in portions()) {
        check_at_one_look(&bytes);
        let whole = replies(&bytes, &[bytes.len().max(1)]);
        prop_assert_eq!(replies(&bytes, &sizes), whole.clone());
        if let (Ok((ends, _)), Ok(Some((_, length)))) = (whole, decode3(&bytes)) {
            prop_assert_eq!(ends.first(), Some(&length));
        }
    }
}
