//! What is in the simulated cache: keys with their tags, and triggers, by real rules.

use std::sync::{Arc, OnceLock};

use rescind::rules::spec::{Located, RulesSpec, TagSpec, TriggerSpec};
use rescind::rules::{Rules, Tag};

/// The tags, by number.
pub const TAGS: usize = 3;
/// The version of the rows behind each tag.
pub type Versions = [u32; TAGS];

const TAG_NAMES: [&str; TAGS] = ["a", "b", "post:1"];
const KEYS: [&str; 6] = ["one", "two", "three", "post:1:x", "post:1:y", "bystander"];

pub struct KeyName {
    pub name: &'static [u8],
    pub tags: Vec<usize>,
    pub labels: Vec<Tag>,
}

pub struct TriggerName {
    pub name: Vec<u8>,
    /// Cascades included.
    pub tags: Vec<usize>,
}

pub struct Names {
    pub tags: Vec<Tag>,
    pub keys: Vec<KeyName>,
    pub triggers: Vec<TriggerName>,
}

impl Names {
    pub fn tag(&self, tag: &Tag) -> usize {
        self.tags.iter().position(|known| known == tag).expect("a known tag")
    }

    pub fn key(&self, name: &[u8]) -> usize {
        self.keys.iter().position(|known| known.name == name).expect("a known key")
    }

    pub fn labels(&self, tags: &[usize]) -> Vec<Tag> {
        tags.iter().map(|tag| self.tags[*tag].clone()).collect()
    }
}

fn text(value: &str) -> Located<String> {
    Located { value: value.to_owned(), line: 0 }
}

fn spec() -> RulesSpec {
    let tag = |name: &str, keys: &[&str]| TagSpec {
        name: text(name),
        keys: keys.iter().map(|key| text(key)).collect(),
    };
    let trigger = |keys: &[&str], tags: &[&str], invalidate: &str| TriggerSpec {
        line: 0,
        name: None,
        keys: keys.iter().map(|key| text(key)).collect(),
        commands: vec![],
        tags: tags.iter().map(|tag| text(tag)).collect(),
        invalidate: vec![text(invalidate)],
    };
    RulesSpec {
        tags: vec![
            tag("a", &["one", "two"]),
            tag("b", &["two", "three"]),
            tag("post:{id}", &["post:{id}:*"]),
        ],
        triggers: vec![trigger(&["model:{tag*}"], &[], "{tag*}"), trigger(&[], &["b"], "post:1")],
        ..RulesSpec::default()
    }
}

fn build() -> Names {
    let rules = Arc::new(Rules::compile(&spec()).expect("rules"));
    let mut matcher = rules.matcher();
    let tags: Vec<Tag> = TAG_NAMES.iter().map(|name| Tag::from(name.as_bytes())).collect();
    let number = |tag: &Tag| tags.iter().position(|known| known == tag).expect("a known tag");
    let keys = KEYS.iter().map(|key| {
        let mut labels = vec![];
        matcher.tags(0, key.as_bytes(), &mut labels);
        KeyName { name: key.as_bytes(), tags: labels.iter().map(number).collect(), labels }
    });
    let keys = keys.collect();
    let triggers = TAG_NAMES.iter().map(|tag| {
        let name = format!("model:{tag}").into_bytes();
        let mut fired = vec![];
        matcher.fired(0, &name, None, &mut fired);
        let mut closure = fired.remove(0).tags;
        matcher.cascade(&mut closure);
        TriggerName { name, tags: closure.iter().map(number).collect() }
    });
    let triggers = triggers.collect();
    Names { tags, keys, triggers }
}

pub fn names() -> &'static Names {
    static NAMES: OnceLock<Names> = OnceLock::new();
    NAMES.get_or_init(build)
}
