//! Listens to what the kernel notifies of: rtnetlink's and nftables' multicast groups.
//!
//! A full buffer, an ended stream, a closed connection and a message that cannot be read all mean the same: something was
//! changed, and what it was is not known. [`Notification::Lost`] says that everything has to be read; the sockets are
//! opened anew, and it is said again: what is changed after that reading is notified of.

use std::{convert::Infallible, io, time::Duration};

use enid_datapath::{
    Error, Family,
    notification::{
        Notification,
        route::{RouteNotifications, groups},
        table::{GROUP, TableNotifications},
    },
};
use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_proto::{
    Connection, new_connection,
    sys::{
        AsyncSocket, SocketAddr,
        protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
    },
};
use tokio::{sync::mpsc, time::sleep};
use tracing::warn;

use crate::host::netlink::{Incoming, Netlink};

/// Bytes that may wait to be read; a firewall that is loaded anew notifies of every rule.
const BUFFER: i32 = 1 << 20;
/// Notifications that are handed over together.
const TOGETHER: usize = 1024;
/// After sockets could not be opened.
const PAUSE: Duration = Duration::from_millis(500);

/// Listens from now on, in a task of its own: who made a change can often be found out only in the first moment. `v6`: to
/// what concerns IPv6 too.
pub async fn start(v6: bool) -> Result<mpsc::UnboundedReceiver<Vec<Notification>>, Error> {
    let mut listener = Listener::open(v6).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let notifications = listener.next().await;
            let lost = notifications.contains(&Notification::Lost);
            let mut sent = sender.send(notifications);
            if lost {
                listener = reopened(v6).await;
                // What was changed in between was not notified of.
                sent = sender.send(vec![Notification::Lost]);
            }
            if sent.is_err() {
                return; // the daemon ends
            }
        }
    });
    Ok(receiver)
}

async fn reopened(v6: bool) -> Listener {
    let mut reported = false;
    loop {
        match Listener::open(v6).await {
            Ok(listener) => return listener,
            Err(failure) if !reported => warn!("the kernel's notifications are not received: {failure}"),
            Err(_) => {}
        }
        reported = true;
        sleep(PAUSE).await;
    }
}

/// A message of nftables, as it came: its meaning is [`TableNotifications`]' business.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Raw {
    kind: u16,
    payload: Vec<u8>,
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Raw { kind: header.message_type, payload: payload.to_vec() })
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

type Messages<T> = BoxStream<'static, NetlinkMessage<T>>;

/// Receives notifications of this process's network namespace.
struct Listener {
    routes: Messages<Incoming>,
    route_notifications: RouteNotifications,
    tables: Messages<Raw>,
    table_notifications: TableNotifications,
}

impl Listener {
    /// The connections run in the current runtime.
    async fn open(v6: bool) -> Result<Self, Error> {
        let routes = subscribe(NETLINK_ROUTE, &groups(v6))?;
        let tables = subscribe(NETLINK_NETFILTER, &[GROUP])?;
        // What comes from now on is notified of.
        let links = Netlink::open()?.list(&[Family::V4]).await?;
        let (route_notifications, table_notifications) = (RouteNotifications::new(&links), TableNotifications::new());
        Ok(Listener { routes, route_notifications, tables, table_notifications })
    }

    /// Waits until something that may concern us is notified of. After [`Notification::Lost`] nothing more is.
    async fn next(&mut self) -> Vec<Notification> {
        let mut notifications = Vec::new();
        while notifications.is_empty() {
            tokio::select! {
                message = self.routes.next() => notifications.extend(of_route(&mut self.route_notifications, message)),
                message = self.tables.next() => notifications.extend(of_table(&mut self.table_notifications, message)),
            }
        }
        // What has come together is handed over together.
        while notifications.len() < TOGETHER && !notifications.contains(&Notification::Lost) {
            let route = self.routes.next().now_or_never();
            let table = self.tables.next().now_or_never();
            if route.is_none() && table.is_none() {
                break;
            }
            notifications.extend(route.and_then(|message| of_route(&mut self.route_notifications, message)));
            notifications.extend(table.and_then(|message| of_table(&mut self.table_notifications, message)));
        }
        notifications
    }
}

/// The messages of these groups; the connection ends with the stream.
fn subscribe<T>(protocol: isize, groups: &[u32]) -> Result<Messages<T>, Error>
where
    T: std::fmt::Debug + NetlinkSerializable + NetlinkDeserializable + Unpin + Send + 'static,
    Connection<T>: Future<Output = ()> + Send,
{
    let open = || {
        let (mut connection, handle, messages) = new_connection::<T>(protocol)?;
        let socket = connection.socket_mut().socket_mut();
        socket.bind_auto()?;
        socket.set_rx_buf_sz(BUFFER)?;
        groups.iter().try_for_each(|group| socket.add_membership(*group))?;
        tokio::spawn(connection);
        // Without a handle the connection would end only when it notices that nobody takes its messages.
        Ok::<_, io::Error>(messages.map(move |(message, _): (NetlinkMessage<T>, SocketAddr)| {
            let _handle = &handle;
            message
        }))
    };
    open().map(StreamExt::boxed).map_err(|source| Error::new("listen to the kernel's notifications", source))
}

/// What a message of rtnetlink means, or the end of them.
fn of_route(notifications: &mut RouteNotifications, message: Option<NetlinkMessage<Incoming>>) -> Option<Notification> {
    let Some(message) = message else { return Some(Notification::Lost) };
    let port = message.header.port_number;
    match message.payload {
        NetlinkPayload::InnerMessage(Incoming::Route(message)) => notifications.of(port, &message),
        NetlinkPayload::InnerMessage(Incoming::Unknown(kind)) => RouteNotifications::of_unknown(port, kind),
        NetlinkPayload::Overrun(_) => Some(Notification::Lost),
        _ => None,
    }
}

/// The same of nftables.
fn of_table(notifications: &mut TableNotifications, message: Option<NetlinkMessage<Raw>>) -> Option<Notification> {
    let Some(message) = message else { return Some(Notification::Lost) };
    match message.payload {
        NetlinkPayload::InnerMessage(Raw { kind, payload }) => notifications.of(kind, &payload),
        NetlinkPayload::Overrun(_) => Some(Notification::Lost),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use enid_datapath::{
        kind::Kind,
        notification::{Author, Urgency},
    };
    use futures_util::{Stream, stream};
    use netlink_packet_route::{RouteNetlinkMessage, rule::RuleMessage};

    use super::*;

    fn message<T>(payload: NetlinkPayload<T>) -> NetlinkMessage<T> {
        NetlinkMessage::new(NetlinkHeader::default(), payload)
    }

    fn rule() -> NetlinkMessage<Incoming> {
        let rule = RouteNetlinkMessage::DelRule(RuleMessage::default());
        message(NetlinkPayload::InnerMessage(Incoming::Route(rule)))
    }

    /// A listener to which this comes; open streams stay so.
    fn listener(
        routes: impl Stream<Item = NetlinkMessage<Incoming>> + Send + 'static,
        tables: impl Stream<Item = NetlinkMessage<Raw>> + Send + 'static,
    ) -> Listener {
        let route_notifications = RouteNotifications::default();
        let table_notifications = TableNotifications::new();
        Listener { routes: routes.boxed(), route_notifications, tables: tables.boxed(), table_notifications }
    }

    #[tokio::test]
    async fn an_overrun_an_end_and_what_cannot_be_read_are_lost_changes() {
        let changed = Notification::Changed(Kind::Rule, Urgency::Soon, Author::Unknown);
        let after_a_rule = |then: Vec<NetlinkMessage<Incoming>>| {
            stream::once(async { rule() }).chain(stream::iter(then)).chain(stream::pending())
        };
        assert_eq!(listener(after_a_rule(vec![]), stream::pending()).next().await, vec![changed.clone()]);
        let lost = [changed, Notification::Lost];
        let overrun = || NetlinkPayload::Overrun(Vec::new());
        assert_eq!(listener(after_a_rule(vec![message(overrun())]), stream::pending()).next().await, lost);
        let unknown = message(NetlinkPayload::InnerMessage(Incoming::Unknown(24)));
        assert_eq!(listener(after_a_rule(vec![unknown]), stream::pending()).next().await, lost);
        let ended = stream::once(async { rule() });
        assert_eq!(listener(ended, stream::pending()).next().await, lost);
        // The same of nftables.
        let of_tables = stream::iter([message(NetlinkPayload::Overrun(Vec::new()))]).chain(stream::pending());
        assert_eq!(listener(stream::pending(), of_tables).next().await, [Notification::Lost]);
        assert_eq!(listener(stream::pending(), stream::empty()).next().await, [Notification::Lost]);
    }
}
