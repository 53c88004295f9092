//! Network namespaces and interfaces as messages of the network service.

mod joining;

use std::net::IpAddr;

use ::types::network::{
    Attachment, IpNet, Link, LinkChange, LinkKind, LinkName, LinkSpec, Neighbour, NetNamespace,
    NewLink, Other, Place, Route, TunMode, Vxlan,
};
use ::types::{Error, Fields, Labels, Result};
use protobuf::MessageField;

use super::{Wire, time};
use crate::services::network as proto;
use crate::well_known::FieldMask;

pub use joining::{joined_from_wire, joined_to_wire, request_from_wire, request_to_wire};

impl Wire for NetNamespace {
    type Proto = proto::NetworkNamespace;

    fn to_wire(&self) -> proto::NetworkNamespace {
        proto::NetworkNamespace {
            name: self.name.clone(),
            path: self.path.display().to_string(),
            inode: self.inode,
            adopted: self.adopted.display().to_string(),
            labels: self.labels.to_wire(),
            created_at: MessageField::some(self.created_at.to_wire()),
            updated_at: MessageField::some(self.updated_at.to_wire()),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::NetworkNamespace) -> Result<Self> {
        Ok(Self {
            name: proto.name,
            path: proto.path.into(),
            inode: proto.inode,
            adopted: proto.adopted.into(),
            labels: Labels::from_wire(proto.labels)?,
            created_at: time(proto.created_at)?,
            updated_at: time(proto.updated_at)?,
        })
    }
}

/// An address in a text field; `None` for the empty one.
fn address(text: &str, what: &str) -> Result<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse();
    parsed
        .map(Some)
        .map_err(|_| Error::invalid_argument(format_args!("{what} {text:?} is no address")))
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

impl Wire for Route {
    type Proto = proto::Route;

    fn to_wire(&self) -> proto::Route {
        proto::Route {
            destination: self.destination.to_string(),
            gateway: text(self.gateway),
            source: text(self.source),
            metric: self.metric,
            table: self.table.unwrap_or_default(),
            mtu: self.mtu.unwrap_or_default(),
            on_link: self.on_link,
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::Route) -> Result<Self> {
        Ok(Self {
            destination: proto.destination.parse()?,
            gateway: address(&proto.gateway, "gateway")?,
            source: address(&proto.source, "source")?,
            metric: proto.metric,
            table: Some(proto.table).filter(|table| *table != 0),
            mtu: Some(proto.mtu).filter(|mtu| *mtu != 0),
            on_link: proto.on_link,
        })
    }
}

impl Wire for Neighbour {
    type Proto = proto::Neighbour;

    fn to_wire(&self) -> proto::Neighbour {
        proto::Neighbour {
            address: self.address.to_string(),
            mac: self.mac.to_string(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::Neighbour) -> Result<Self> {
        let missing = || Error::invalid_argument("neighbour without an address");
        Ok(Self {
            address: address(&proto.address, "neighbour")?.ok_or_else(missing)?,
            mac: proto.mac.parse()?,
        })
    }
}

impl Wire for Attachment {
    type Proto = proto::Attachment;

    fn to_wire(&self) -> proto::Attachment {
        proto::Attachment {
            bridge: self.bridge.to_string(),
            hairpin: self.hairpin,
            isolated: self.isolated,
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::Attachment) -> Result<Self> {
        Ok(Self {
            bridge: proto.bridge.try_into()?,
            hairpin: proto.hairpin,
            isolated: proto.isolated,
        })
    }
}

impl Wire for Other {
    type Proto = proto::OtherLink;

    fn to_wire(&self) -> proto::OtherLink {
        proto::OtherLink {
            name: self.name.to_string(),
            network_namespace: self.place.as_ref().map(|place| place.name().to_owned()),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::OtherLink) -> Result<Self> {
        Ok(Self {
            name: proto.name.try_into()?,
            place: proto.network_namespace.map(Place::of),
        })
    }
}

/// Puts a kind into the fields of a message.
fn put_kind(made: &mut proto::Link, kind: &LinkKind) {
    made.kind = kind.as_str().to_owned();
    match kind {
        LinkKind::Veth(other) => made.other = other.to_wire(),
        LinkKind::Macvlan(other, mode) => {
            made.other = other.to_wire();
            made.mode = mode.as_str().to_owned();
        }
        LinkKind::Ipvlan(other, mode) => {
            made.other = other.to_wire();
            made.mode = mode.as_str().to_owned();
        }
        LinkKind::Vlan(other, id) => {
            made.other = other.to_wire();
            made.id = u32::from(*id);
        }
        LinkKind::Vxlan(vxlan) => {
            made.other = vxlan.parent.to_wire();
            made.id = vxlan.vni;
            made.vxlan = MessageField::some(proto::Vxlan {
                remote: text(vxlan.remote),
                local: text(vxlan.local),
                port: vxlan.port.unwrap_or_default().into(),
                no_learning: vxlan.no_learning,
                ..Default::default()
            });
        }
        LinkKind::Bridge | LinkKind::Tun(_) | LinkKind::Dummy | LinkKind::Foreign(_) => {}
    }
}

/// The kind in the fields of a message; their default where one is empty.
fn take_kind(proto: &mut proto::Link) -> Result<LinkKind> {
    let other = Option::<Other>::from_wire(proto.other.take().into())?;
    let mode = proto.mode.as_str();
    let range = |what: &str, value: u32| {
        Error::invalid_argument(format_args!(
            "{what} {value} of {} is too large",
            proto.kind
        ))
    };
    Ok(match proto.kind.as_str() {
        "veth" => LinkKind::Veth(other),
        "bridge" => LinkKind::Bridge,
        "macvlan" if mode.is_empty() => {
            LinkKind::Macvlan(other, ::types::network::MacvlanMode::default())
        }
        "macvlan" => LinkKind::Macvlan(other, mode.parse()?),
        "ipvlan" if mode.is_empty() => {
            LinkKind::Ipvlan(other, ::types::network::IpvlanMode::default())
        }
        "ipvlan" => LinkKind::Ipvlan(other, mode.parse()?),
        "vlan" => {
            let id = u16::try_from(proto.id).map_err(|_| range("tag", proto.id))?;
            LinkKind::Vlan(other, id)
        }
        "vxlan" => {
            let more = proto.vxlan.take().unwrap_or_default();
            let port = u16::try_from(more.port).map_err(|_| range("port", more.port))?;
            LinkKind::Vxlan(Vxlan {
                vni: proto.id,
                remote: address(&more.remote, "remote")?,
                local: address(&more.local, "local")?,
                port: Some(port).filter(|port| *port != 0),
                parent: other,
                no_learning: more.no_learning,
            })
        }
        "tun" => LinkKind::Tun(TunMode::Tun),
        "tap" => LinkKind::Tun(TunMode::Tap),
        "dummy" => LinkKind::Dummy,
        other => LinkKind::Foreign(other.to_owned()),
    })
}

fn parsed(texts: &[String]) -> Result<Vec<IpNet>> {
    texts.iter().map(|text| text.parse()).collect()
}

fn texts(nets: &[IpNet]) -> Vec<String> {
    nets.iter().map(ToString::to_string).collect()
}

impl Wire for Link {
    type Proto = proto::Link;

    fn to_wire(&self) -> proto::Link {
        let mut made = proto::Link {
            name: self.name.to_string(),
            network_namespace: self.place.name().to_owned(),
            mac: text(self.mac),
            mtu: self.mtu,
            up: self.up,
            running: self.running,
            index: self.index,
            attachment: self.attachment.to_wire(),
            addresses: texts(&self.addresses),
            routes: self.routes.to_wire(),
            neighbours: self.neighbours.to_wire(),
            labels: self.labels.to_wire(),
            created_at: self.created_at.to_wire(),
            ..Default::default()
        };
        put_kind(&mut made, &self.kind);
        made
    }

    fn from_wire(mut proto: proto::Link) -> Result<Self> {
        Ok(Self {
            kind: take_kind(&mut proto)?,
            place: Place::of(proto.network_namespace),
            name: proto.name.try_into()?,
            index: proto.index,
            mac: mac(&proto.mac)?,
            mtu: proto.mtu,
            up: proto.up,
            running: proto.running,
            attachment: Option::from_wire(proto.attachment)?,
            addresses: parsed(&proto.addresses)?,
            routes: Vec::from_wire(proto.routes)?,
            neighbours: Vec::from_wire(proto.neighbours)?,
            labels: Labels::from_wire(proto.labels)?,
            created_at: Option::from_wire(proto.created_at)?,
        })
    }
}

fn mac(text: &str) -> Result<Option<::types::network::MacAddr>> {
    Some(text)
        .filter(|text| !text.is_empty())
        .map(str::parse)
        .transpose()
}

/// A request to make an interface. What has no value is not asked for: a new interface is down and has none.
impl Wire for NewLink {
    type Proto = proto::Link;

    fn to_wire(&self) -> proto::Link {
        let mut made = proto::Link {
            name: self.name.to_string(),
            network_namespace: self.place.name().to_owned(),
            labels: self.labels.to_wire(),
            ..Default::default()
        };
        put_kind(&mut made, &self.kind);
        put_spec(&mut made, &self.spec);
        made
    }

    fn from_wire(mut proto: proto::Link) -> Result<Self> {
        let kind = take_kind(&mut proto)?;
        let labels = Labels::from_wire(std::mem::take(&mut proto.labels))?;
        let name: LinkName = std::mem::take(&mut proto.name).try_into()?;
        let place = Place::of(std::mem::take(&mut proto.network_namespace));
        let mut spec = take_spec(proto, &Fields::default())?;
        spec.up = spec.up.filter(|up| *up);
        Ok(Self {
            place,
            name,
            kind,
            spec,
            labels,
        })
    }
}

fn put_spec(made: &mut proto::Link, spec: &LinkSpec) {
    made.mac = text(spec.mac);
    made.mtu = spec.mtu.unwrap_or_default();
    made.up = spec.up == Some(true);
    made.attachment = spec.attachment.clone().flatten().to_wire();
    made.addresses = texts(spec.addresses.as_deref().unwrap_or_default());
    made.routes = spec.routes.clone().unwrap_or_default().to_wire();
    made.neighbours = spec.neighbours.clone().unwrap_or_default().to_wire();
    made.sysctls = spec.sysctls.clone().into_iter().collect();
}

/// What a message asks for. Without a mask that is whatever has a value, and whether it is up.
fn take_spec(proto: proto::Link, mask: &Fields) -> Result<LinkSpec> {
    let named = |field: &str| mask.iter().any(|path| path == field);
    let wanted = |field: &str, has_value: bool| {
        if mask.is_all() {
            has_value
        } else {
            named(field)
        }
    };
    let mac = mac(&proto.mac)?;
    for (field, missing) in [("mac", mac.is_none()), ("mtu", proto.mtu == 0)] {
        if named(field) && missing {
            return Err(Error::invalid_argument(format_args!(
                "{field} of interface {} has no value",
                proto.name
            )));
        }
    }
    let attachment = Option::<Attachment>::from_wire(proto.attachment)?;
    let sysctl = |key: &str| wanted("sysctls", true) || named(&format!("sysctls.{key}"));
    Ok(LinkSpec {
        mac: mac.filter(|_| wanted("mac", true)),
        mtu: Some(proto.mtu).filter(|mtu| wanted("mtu", *mtu != 0)),
        up: Some(proto.up).filter(|_| wanted("up", true)),
        attachment: Some(attachment).filter(|to| wanted("attachment", to.is_some())),
        addresses: Some(parsed(&proto.addresses)?)
            .filter(|all| wanted("addresses", !all.is_empty())),
        routes: Some(Vec::from_wire(proto.routes)?).filter(|all| wanted("routes", !all.is_empty())),
        neighbours: Some(Vec::from_wire(proto.neighbours)?)
            .filter(|all| wanted("neighbours", !all.is_empty())),
        sysctls: proto
            .sysctls
            .into_iter()
            .filter(|(key, _)| sysctl(key))
            .collect(),
    })
}

/// Fields of an interface that can change, but for labels.
const FIELDS: [&str; 8] = [
    "mac",
    "mtu",
    "up",
    "attachment",
    "addresses",
    "routes",
    "neighbours",
    "sysctls",
];

/// What a message and its mask ask to change.
///
/// # Errors
/// `InvalidArgument` for a field that cannot change, and for values that do not parse.
pub fn change_from_wire(
    mut link: proto::Link,
    mask: MessageField<FieldMask>,
) -> Result<LinkChange> {
    let mask = super::mask(mask)?;
    let labels = Labels::from_wire(std::mem::take(&mut link.labels))?;
    let mut of_labels = Vec::new();
    for (path, split) in mask.iter().zip(mask.split()) {
        match split {
            ("labels", _) => of_labels.push(path.to_owned()),
            ("sysctls", Some(key)) if !link.sysctls.contains_key(key) => {
                return Err(Error::invalid_argument(format_args!("{path} has no value")));
            }
            ("sysctls", Some(_)) => {}
            (field, None) if FIELDS.contains(&field) => {}
            _ => return Fields::refuse(path, "interface"),
        }
    }
    let has_labels = if mask.is_all() {
        !labels.is_empty()
    } else {
        !of_labels.is_empty()
    };
    let fields = Fields::new(of_labels);
    Ok(LinkChange {
        spec: take_spec(link, &mask)?,
        labels: has_labels.then_some((labels, fields)),
    })
}

/// A request to change an interface: the message and its mask.
#[must_use]
pub fn change_to_wire(
    place: &Place,
    name: &LinkName,
    change: &LinkChange,
) -> (proto::Link, FieldMask) {
    let mut link = proto::Link {
        name: name.to_string(),
        network_namespace: place.name().to_owned(),
        ..Default::default()
    };
    put_spec(&mut link, &change.spec);
    let spec = &change.spec;
    let named = [
        spec.mac.is_some(),
        spec.mtu.is_some(),
        spec.up.is_some(),
        spec.attachment.is_some(),
        spec.addresses.is_some(),
        spec.routes.is_some(),
        spec.neighbours.is_some(),
    ];
    let named = FIELDS
        .into_iter()
        .zip(named)
        .filter(|(_, is_named)| *is_named);
    let mut paths: Vec<String> = named.map(|(field, _)| field.to_owned()).collect();
    paths.extend(spec.sysctls.keys().map(|key| format!("sysctls.{key}")));
    if let Some((labels, fields)) = &change.labels {
        link.labels = labels.to_wire();
        if fields.is_all() {
            paths.push("labels".to_owned());
        }
        paths.extend(fields.iter().map(str::to_owned));
    }
    let mut mask = FieldMask::new();
    mask.paths = paths;
    (link, mask)
}

#[cfg(test)]
mod tests;
