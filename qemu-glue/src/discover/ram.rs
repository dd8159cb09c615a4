//! Which RAM blocks are guest memory, and where the process has them.

use romulus_checkpoint::{GuestLayout, PAGE_BYTES, Region};

use super::{Backend, BackendKind, Inventory, RamBlock};
use crate::error::QemuError;
use crate::process::SharedMapping;

/// A RAM block that is guest memory in a shared file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// The block's name, the region's in the layout.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// The backend that holds it.
    pub backend: Backend,
}

const HOW: &str = "start QEMU with -object memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm/NAME,share=on \
                   -machine TYPE,memory-backend=ram0";

/// The guest's memory, sorted by name. Refuses memory that is not in a shared file.
pub fn regions(inventory: &Inventory) -> Result<Vec<RamRegion>, QemuError> {
    let mut regions = Vec::new();
    for block in &inventory.blocks {
        if let Some(backend) = backend_of(inventory, block) {
            check_backend(backend)?;
            let len_bytes = block.total_bytes;
            if len_bytes == 0 || len_bytes % PAGE_BYTES != 0 {
                let why = format!("RAM block {} has {len_bytes} bytes, no whole number of pages", block.name);
                return Err(QemuError::Refused(why));
            }
            regions.push(RamRegion { name: block.name.clone(), len_bytes, backend: backend.clone() });
        }
    }
    regions.sort_by(|left, right| left.name.cmp(&right.name));
    let found: u64 = regions.iter().map(|region| region.len_bytes).sum();
    if regions.is_empty() || found < inventory.memory_bytes {
        return Err(QemuError::Refused(format!(
            "the guest has {} bytes of memory, {found} of them in shared files; {HOW}",
            inventory.memory_bytes
        )));
    }
    Ok(regions)
}

/// The backend behind a block: blocks are named by the backend's id or its path.
pub(super) fn backend_of<'a>(inventory: &'a Inventory, block: &RamBlock) -> Option<&'a Backend> {
    let name = block.name.strip_prefix("/objects/").unwrap_or(&block.name);
    inventory.backends.iter().find(|backend| backend.id == name)
}

fn check_backend(backend: &Backend) -> Result<(), QemuError> {
    let id = &backend.id;
    let why = match (backend.kind, backend.share) {
        (BackendKind::Memfd, _) => format!(
            "memory backend {id} is a memfd: newer versions of QEMU would put all of it into every saved state; {HOW}"
        ),
        (BackendKind::File, true) if backend.discard_data => format!(
            "memory backend {id} has discard-data=on: QEMU would destroy the content of its file; turn it off"
        ),
        (BackendKind::File, true) => return Ok(()),
        (BackendKind::File, false) => {
            format!("memory backend {id} is private (share=off), its writes stay in the process; {HOW}")
        }
        (BackendKind::Other, _) => format!("the guest's RAM {id} is private memory of QEMU; {HOW}"),
    };
    Err(QemuError::Refused(why))
}

/// The layout: one region a block.
pub fn layout(regions: &[RamRegion]) -> GuestLayout {
    let region =
        |region: &RamRegion| Region { name: region.name.clone(), pages: region.len_bytes / PAGE_BYTES };
    GuestLayout { regions: regions.iter().map(region).collect() }
}

/// The mapping of each region in the process.
pub fn locate(
    regions: &[RamRegion],
    mappings: &[SharedMapping],
    address_of_zero: Option<u64>,
) -> Result<Vec<SharedMapping>, QemuError> {
    let mut free: Vec<&SharedMapping> = mappings.iter().collect();
    let mut found = Vec::new();
    for region in regions {
        let fits = |mapping: &SharedMapping| mapping.len_bytes == region.len_bytes;
        let path = region.backend.path.as_str();
        let directory = format!("{}/qemu_back_mem.", path.trim_end_matches('/'));
        let by_name = free.iter().position(|mapping| {
            fits(mapping) && (mapping.name == path || mapping.name.starts_with(&directory))
        });
        let by_size = || {
            let mut places = free.iter().enumerate().filter(|(_, mapping)| fits(mapping));
            let only = places.next();
            if places.next().is_some() { None } else { only.map(|(index, _)| index) }
        };
        let Some(index) = by_name.or_else(by_size) else {
            return Err(QemuError::failed(
                format!("finding RAM block {} in QEMU's memory map", region.name),
                format!("no shared mapping of {path} with {} bytes", region.len_bytes),
            ));
        };
        found.push(free.remove(index).clone());
    }
    let holds = |mapping: &SharedMapping, address: u64| {
        (mapping.address..mapping.address + mapping.len_bytes).contains(&address)
    };
    if let Some(address) = address_of_zero
        && !found.iter().any(|mapping| holds(mapping, address))
    {
        return Err(QemuError::failed(
            "finding guest memory in QEMU's memory map",
            "the guest's first page is in none of the shared mappings found",
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn backend(id: &str, kind: BackendKind, share: bool) -> Backend {
        Backend {
            id: id.into(),
            kind,
            size_bytes: 8192,
            share,
            path: format!("/dev/shm/{id}"),
            discard_data: false,
        }
    }

    fn inventory(backends: Vec<Backend>) -> Inventory {
        let block = |backend: &Backend| RamBlock {
            name: backend.id.clone(),
            total_bytes: backend.size_bytes,
            read_only: None,
        };
        let memory_bytes = backends.iter().map(|backend| backend.size_bytes).sum();
        let blocks = backends.iter().map(block).collect();
        Inventory { backends, blocks, memory_bytes, ..Inventory::default() }
    }

    #[test]
    fn several_backends_are_several_regions() {
        let inventory =
            inventory(vec![backend("b", BackendKind::File, true), backend("a", BackendKind::File, true)]);
        let regions = regions(&inventory).unwrap();
        assert_eq!(layout(&regions).regions[0], Region { name: "a".into(), pages: 2 });
        assert_eq!(layout(&regions).pages(), 4);
    }

    #[test]
    fn private_memfd_and_discarding_memory_is_refused() {
        let refused = |backend: Backend| regions(&inventory(vec![backend])).unwrap_err().to_string();
        assert!(refused(backend("pc.ram", BackendKind::Other, false)).contains("private memory"));
        assert!(refused(backend("r", BackendKind::File, false)).contains("share=off"));
        assert!(refused(backend("r", BackendKind::Memfd, true)).contains("memfd"));
        let mut discards = backend("r", BackendKind::File, true);
        discards.discard_data = true;
        assert!(refused(discards).contains("discard-data"));
    }

    #[test]
    fn memory_outside_the_backends_is_refused() {
        let mut inventory = inventory(vec![backend("a", BackendKind::File, true)]);
        inventory.memory_bytes += 4096;
        assert!(regions(&inventory).unwrap_err().to_string().contains("12288 bytes of memory, 8192"));
    }
}
