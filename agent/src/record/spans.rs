//! Operations as spans of traces: of a trace that the runtime names (TRACEPARENT), or of one of their own; sent to a collector over
//! OTLP where OTEL_EXPORTER_OTLP_ENDPOINT says so. A span is made when its operation has ended. What a collector does not take in
//! time is lost: nobody waits for it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use enid_api::v1::Operation;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig, tonic_types::transport::ClientTlsConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks,
        SpanProcessor,
    },
};

use super::kind::{Kind, outcome};

/// How long a collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The same for what is left when the daemon ends.
const AT_END: Duration = Duration::from_secs(1);
/// Spans that wait for the collector at most.
const WAITING: usize = 2_048;
/// They are sent so often, and whenever there are many.
const EVERY: Duration = Duration::from_secs(2);

/// What makes spans, and where they go.
#[derive(Debug)]
pub struct Spans {
    processor: BatchSpanProcessor,
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
}

impl Spans {
    /// Sends them to a collector; what it hears of the node comes along. It connects in the runtime in which it is called.
    ///
    /// # Errors
    ///
    /// The endpoint is none.
    pub fn start(endpoint: &str, node: &str, instance: &str) -> anyhow::Result<Self> {
        let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(TIMEOUT);
        let builder = match endpoint.starts_with("https:") {
            true => builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots()),
            false => builder,
        };
        let exporter = builder.build();
        let exporter = exporter.with_context(|| format!("no traces can be sent to {endpoint}"))?;
        let config = BatchConfigBuilder::default().with_max_queue_size(WAITING).with_scheduled_delay(EVERY).build();
        let mut processor = BatchSpanProcessor::new(exporter, config);
        let of_node = [
            ("service.name", "enid".to_owned()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("k8s.node.name", node.to_owned()),
            ("host.id", instance.to_owned()),
        ];
        let of_node = of_node.map(|(key, value)| KeyValue::new(key, value));
        processor.set_resource(&Resource::builder_empty().with_attributes(of_node).build());
        let scope = InstrumentationScope::builder("enid").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Spans { processor, ids: RandomIdGenerator::default(), scope })
    }

    /// An operation begins, in a trace of its own as far as is known.
    pub fn begin(&self, kind: Kind, operation: &mut Operation) {
        if matches!(kind, Kind::Add | Kind::Del | Kind::Check | Kind::Gc | Kind::Ec2) {
            operation.trace_id = self.ids.new_trace_id().to_string();
            operation.span_id = self.ids.new_span_id().to_string();
        }
    }

    /// An operation has ended.
    pub fn ended(&self, kind: Kind, operation: &Operation) {
        let (Ok(trace), Ok(span)) = (TraceId::from_hex(&operation.trace_id), SpanId::from_hex(&operation.span_id))
        else {
            return; // it is of no trace
        };
        let parent = SpanId::from_hex(&operation.parent_span_id).unwrap_or(SpanId::INVALID);
        let began = UNIX_EPOCH + Duration::from_millis(operation.began_unix_ms);
        let (kind, name) = match kind {
            Kind::Ec2 => (SpanKind::Client, operation.subject.clone()),
            _ => (SpanKind::Server, operation.kind.clone()),
        };
        let status = match &*operation.outcome {
            outcome::DONE => Status::Ok,
            ended => {
                Status::error(if operation.message.is_empty() { ended.to_owned() } else { operation.message.clone() })
            }
        };
        let whole = Part { trace, span, parent, name: name.clone(), began, took_us: operation.took_us };
        let attributes = attributes(operation);
        self.processor.on_end(SpanData { span_kind: kind, status, attributes, ..self.span(whole) });
        let mut at = began;
        for phase in &operation.phases {
            let (name, took_us) = (format!("{name} {}", phase.name), phase.took_us);
            let part = Part { trace, span: self.ids.new_span_id(), parent: span, name, began: at, took_us };
            at += Duration::from_micros(took_us);
            self.processor.on_end(self.span(part));
        }
    }

    /// Sends what is left.
    pub fn end(&self) {
        // A collector that is away is no fault of ours.
        let _ = self.processor.shutdown_with_timeout(AT_END);
    }

    fn span(&self, part: Part) -> SpanData {
        let Part { trace, span, parent, name, began, took_us } = part;
        SpanData {
            span_context: SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: began,
            end_time: began + Duration::from_micros(took_us),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// What a span is made from.
struct Part {
    trace: TraceId,
    span: SpanId,
    parent: SpanId,
    name: String,
    began: SystemTime,
    took_us: u64,
}

/// The names are OpenTelemetry's where it has one ("Semantic conventions"): k8s.*, aws.request_id, error.type.
fn attributes(operation: &Operation) -> Vec<KeyValue> {
    let (namespace, pod) = operation.pod.split_once('/').unwrap_or_default();
    let all = [
        ("k8s.namespace.name", namespace),
        ("k8s.pod.name", pod),
        ("container.id", &operation.container),
        ("enid.outcome", &operation.outcome),
        ("error.type", &operation.cause),
        ("enid.address", &operation.address),
        ("enid.eni", &operation.eni),
        ("aws.request_id", &operation.aws_request_id),
    ];
    let set = all.into_iter().filter(|(_, value)| !value.is_empty());
    set.map(|(name, value)| KeyValue::new(name, value.to_owned())).collect()
}

/// The trace that a runtime names, and its span there; `None` for what is no TRACEPARENT. The third says whether the runtime
/// records that trace.
pub fn named(traceparent: &str) -> Option<(TraceId, SpanId, bool)> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    let is_one = version == "00" && trace != TraceId::INVALID && span != SpanId::INVALID;
    is_one.then_some((trace, span, sampled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_or_left_alone() {
        let (trace, span, sampled) = named("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        assert_eq!(
            (&*trace.to_string(), &*span.to_string(), sampled),
            ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", true)
        );
        assert!(!named("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00").unwrap().2);
        for no in ["", "00", "00-0-0-0", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "01-a-b-c"] {
            assert!(named(no).is_none(), "{no}");
        }
    }
}
