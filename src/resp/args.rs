//! The arguments of one request, as spans into the bytes they arrived in.

/// Where one argument lies in the buffer of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

/// The arguments of one request; argument 0 is the command's name.
///
/// Copyable and borrowed: making one allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    buf: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Arguments at `spans` of `buf`. Every span must lie within `buf`.
    pub fn new(buf: &'a [u8], spans: &'a [Span]) -> Self {
        Self { buf, spans }
    }

    /// How many arguments there are, the command's name included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is not even a command name.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Argument `i`, or `None` behind the last one.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        let span = self.spans.get(i)?;
        self.buf.get(span.start as usize..span.end as usize)
    }

    /// All arguments in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let buf = self.buf;
        self.spans.iter().map(move |s| &buf[s.start as usize..s.end as usize])
    }

    /// The arguments from `first` on: the inner command of `TAG.WITH`, for one.
    pub fn tail(&self, first: usize) -> Args<'a> {
        Args { buf: self.buf, spans: self.spans.get(first..).unwrap_or(&[]) }
    }
}

/// Owned arguments, for tests and for commands that the proxy makes up itself.
#[derive(Clone, Debug, Default)]
pub struct OwnedArgs {
    buf: Vec<u8>,
    spans: Vec<Span>,
}

impl OwnedArgs {
    /// Borrows them in the form the rest of the crate takes.
    pub fn as_args(&self) -> Args<'_> {
        Args::new(&self.buf, &self.spans)
    }
}

impl<A: AsRef<[u8]>> FromIterator<A> for OwnedArgs {
    fn from_iter<I: IntoIterator<Item = A>>(args: I) -> Self {
        let mut owned = OwnedArgs::default();
        for arg in args {
            let start = owned.buf.len() as u32;
            owned.buf.extend_from_slice(arg.as_ref());
            owned.spans.push(Span { start, end: owned.buf.len() as u32 });
        }
        owned
    }
}
