//! How the API server is reached: as any pod does, by its ServiceAccount, or as KUBECONFIG says. Over one connection, which
//! all requests and watches share (HTTP/2), and never through a proxy: it is inside the cluster.

use std::{env, time::Duration};

use anyhow::Context;
use axum::http::Uri;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client as Transport, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
    config::KubeConfigOptions,
};
use tower::{BoxError, ServiceBuilder};

const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nothing has come for so long is asked for a sign of life (HTTP/2, 6.7 PING).
const QUIET: Duration = Duration::from_secs(30);
/// It is given up without one after so long.
const SILENT: Duration = Duration::from_secs(10);

/// A client, which connects when it is used; `None` where nothing says that there is a cluster. `endpoint`: the API server's
/// URL in place of the configured one.
///
/// # Errors
///
/// What is configured cannot be read, or means nothing.
pub async fn connect(endpoint: Option<&str>) -> anyhow::Result<Option<Client>> {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let mut config = if is_set("KUBECONFIG") {
        let kubeconfig = Config::from_kubeconfig(&KubeConfigOptions::default()).await;
        kubeconfig.context("cannot read what KUBECONFIG names")?
    } else if is_set("KUBERNETES_SERVICE_HOST") {
        Config::incluster_env().context("cannot read the ServiceAccount's files")?
    } else {
        return Ok(None);
    };
    if let Some(endpoint) = endpoint {
        config.cluster_url = endpoint.parse::<Uri>().with_context(|| format!("{endpoint:?} is no URL"))?;
    }
    client(&config).map(Some)
}

fn client(config: &Config) -> anyhow::Result<Client> {
    let tls = config.rustls_client_config().context("cannot read the cluster's certificates")?;
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http2().wrap_connector(connector);
    let transport: Transport<_, Body> = Transport::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(QUIET)
        .http2_keep_alive_timeout(SILENT)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context("cannot read the ServiceAccount's token")?)
        .map_err(BoxError::from)
        .service(transport);
    Ok(Client::new(service, config.default_namespace.clone()))
}
