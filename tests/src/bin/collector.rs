//! A collector of OpenTelemetry's: takes spans over OTLP and prints each as a line of JSON.
//!
//!     collector ADDRESS

use std::net::SocketAddr;

use anyhow::Context;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
};
use serde_json::{Map, json};
use tonic::{Request, Response, Status, transport::Server};

struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        asked: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in asked.into_inner().resource_spans {
            let resource = named(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let line = json!({
                    "name": span.name,
                    "kind": span.kind,
                    "trace": hex(&span.trace_id),
                    "span": hex(&span.span_id),
                    "parent": hex(&span.parent_span_id),
                    "took_us": (span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano)) / 1_000,
                    "status": span.status.map(|status| status.code).unwrap_or_default(),
                    "attributes": named(span.attributes),
                    "resource": resource,
                });
                println!("{line}");
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn named(attributes: Vec<KeyValue>) -> Map<String, serde_json::Value> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value).into())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn main() -> anyhow::Result<()> {
    let address: SocketAddr = std::env::args().nth(1).context("which address?")?.parse().context("it is no address")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let server = Server::builder().add_service(TraceServiceServer::new(Collector)).serve(address);
    runtime.block_on(server).context("cannot serve")
}
