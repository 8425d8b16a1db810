//! What rules may say, and hardly anybody means.

use std::sync::Arc;
use std::time::Duration;

use super::spec::OnInvalidate;
use super::{Family, FamilyId, LeftOut, Matcher, Rules};

impl Rules {
    /// What is right and probably not meant, a sentence each. What keys a pattern matches is judged by one of them.
    pub fn notes(self: &Arc<Self>) -> Vec<String> {
        let mut notes = self.unseen();
        notes.extend(self.families.iter().filter_map(Family::lacks_expire));
        let mut matcher = self.matcher();
        // Each key is compared with all patterns, which takes long where there are thousands: only if it may tell something.
        let has_settings = self.families.iter().any(Family::is_set);
        for pattern in &self.patterns {
            let key = pattern.pattern.example();
            if has_settings {
                notes.extend(self.unreached(&mut matcher, &key));
            }
            if !pattern.fires.is_empty() {
                notes.extend(self.gone_at_once(&mut matcher, &key));
            }
        }
        notes.sort_unstable();
        notes.dedup();
        notes
    }

    /// Triggers that Redis is not asked to watch.
    fn unseen(&self) -> Vec<String> {
        let left_out = self.tracking_prefixes().left_out.into_iter();
        let note = |left_out: LeftOut| {
            format!(
                "trigger \"{}\": the prefix \"{}\" of its keys also begins cached keys, so writes made past the proxy \
                 are not seen; give trigger keys a prefix of their own",
                self.triggers[usize::from(left_out.trigger.0)].label,
                String::from_utf8_lossy(&left_out.prefix)
            )
        };
        left_out.map(note).collect()
    }

    /// A `[[family]]` whose settings do not apply to some of its keys.
    fn unreached(&self, matcher: &mut Matcher, key: &[u8]) -> Option<String> {
        let mut families: Vec<FamilyId> =
            matcher.matching(key).iter().map(|number| self.classes[*number as usize].family).collect();
        families.sort_unstable();
        let [first, later] = [self.family(*families.first()?), self.family(*families.last()?)];
        if !first.is_pattern() || !later.is_set() {
            return None;
        }
        Some(format!(
            "family \"{}\": keys of the pattern `{}` do not belong to it, because that stands first and is a family of its \
             own; list the pattern here as well",
            later.name, first.name
        ))
    }

    /// A trigger whose own key depends on what it invalidates.
    fn gone_at_once(&self, matcher: &mut Matcher, key: &[u8]) -> Option<String> {
        let db = self.first_database();
        let (mut tags, mut fired) = (vec![], vec![]);
        matcher.tags(db, key, &mut tags);
        matcher.fired(db, key, None, &mut fired);
        let fired = fired.into_iter().find_map(|mut fired| {
            matcher.cascade(&mut fired.tags);
            fired.tags.into_iter().find(|tag| tags.contains(tag)).map(|tag| (fired.trigger, tag))
        });
        let (trigger, tag) = fired?;
        Some(format!(
            "trigger \"{}\": a key of its own such as \"{}\" depends on the tag {} that it invalidates, so each write deletes \
             what it has written",
            self.triggers[usize::from(trigger.0)].label,
            String::from_utf8_lossy(key),
            String::from_utf8_lossy(&tag)
        ))
    }
}

impl Family {
    /// A `grace` that never begins.
    fn lacks_expire(&self) -> Option<String> {
        let is_void = self.grace > Duration::ZERO && self.on_invalidate == OnInvalidate::Delete;
        is_void.then(|| {
            format!(
                "family \"{}\": `grace` means nothing where keys are deleted; write on_invalidate = \"expire\" to serve \
                 them that much longer",
                self.name
            )
        })
    }

    /// Whether it is a pattern without a `[[family]]`.
    fn is_pattern(&self) -> bool {
        matches!(&self.keys[..], [only] if *only == self.name)
    }

    /// Whether it is a `[[family]]` that sets something.
    fn is_set(&self) -> bool {
        !self.is_pattern() && *self != Family::with_defaults(self.name.clone(), self.keys.clone())
    }
}
