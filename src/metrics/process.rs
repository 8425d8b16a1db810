//! What the process uses of the machine.

use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto;
use rustix::time::{ClockId, clock_gettime};

/// The library's collector, except that it counts processor time in whole seconds: a quiet proxy would take none for
/// minutes, and then a whole second at once.
#[derive(Debug)]
pub(super) struct Process(ProcessCollector);

impl Process {
    pub fn new() -> Process {
        Process(ProcessCollector::for_self())
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut families = self.0.collect();
        let time = families.iter_mut().filter(|family| family.name() == "process_cpu_seconds_total");
        for metric in time.flat_map(|family| family.mut_metric()) {
            let mut counter = proto::Counter::default();
            counter.set_value(processor_time().as_secs_f64());
            metric.set_counter(counter);
        }
        families
    }
}

/// What all threads have used so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
