//! A number that is the same where rules name the same dependents, by which proxies know whether they agree.

use super::spec::RulesSpec;

/// Of what is written: the order does not count, nor do families and the triggers that are keys.
pub(super) fn of(spec: &RulesSpec) -> u32 {
    let mut lines: Vec<String> = vec![];
    for tag in &spec.tags {
        lines.extend(tag.keys.iter().map(|key| format!("{:?} {:?}", tag.name.value, key.value)));
    }
    for trigger in &spec.triggers {
        for tag in &trigger.tags {
            let cascade = |to: &String| format!("{:?} cascades {to:?}", tag.value);
            lines.extend(trigger.invalidate.iter().map(|to| cascade(&to.value)));
        }
    }
    let mut databases = spec.databases.clone();
    databases.iter_mut().for_each(|databases| databases.sort_unstable());
    lines.push(format!("in {databases:?} with {:?}", spec.prefix));
    lines.sort_unstable();
    lines.dedup();
    crc32fast::hash(lines.join("\n").as_bytes())
}
