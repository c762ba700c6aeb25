//! Extended CPU state: which components there are, where they lie, and an image of them all in the standard format.

use std::arch::x86_64::{__cpuid_count, _fxsave64};

/// State component of the x87 FPU (Intel SDM Vol 1 §13.1).
pub const X87: u32 = 0;
/// State component of SSE: XMM registers, and MXCSR in part.
pub const SSE: u32 = 1;
/// State component of AVX: the upper halves of the YMM registers.
pub const AVX: u32 = 2;
/// State component of protection keys for user pages.
pub const PKRU: u32 = 9;

/// Bytes of the legacy region (Intel SDM Vol 1 §13.4.1).
pub const LEGACY_SIZE: usize = 512;
/// Bytes of the legacy region and the header (§13.4.2); the extended region begins here.
pub const EXTENDED: usize = 576;
/// Offset of XSTATE_BV, the first field of the header.
pub const XSTATE_BV: usize = 512;
/// Offset of MXCSR (Vol 1, table 13-1, as for all below). The x87 control registers are before it.
pub const MXCSR: usize = 24;
/// Offset of MXCSR_MASK.
pub const MXCSR_MASK: usize = 28;
/// Offset of the x87 registers.
pub const ST: usize = 32;
/// Offset of the XMM registers.
pub const XMM: usize = 160;
/// End of the XMM registers.
pub const XMM_END: usize = 416;

/// MXCSR after reset (Vol 1 §11.6.4).
pub const MXCSR_RESET: u32 = 0x1f80;
/// FCW after FNINIT (Vol 1 §8.1.5): all exceptions masked, 64-bit precision.
const FCW_RESET: u16 = 0x37f;
/// MXCSR_MASK where FXSAVE stores zero (Vol 1 §11.6.6).
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;

/// One component of the extended region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// Bytes from the start of an area in the standard format.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// In the compacted format, starts at a multiple of 64 bytes.
    pub aligned: bool,
}

/// The components of the extended region, by number (none beyond 31 is defined). CPUID leaf 0DH enumerates them (Intel SDM Vol 1 §13.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    components: [Option<Component>; 32],
    mxcsr_mask: u32,
}

impl Layout {
    /// This CPU's user components that lie within `size` bytes. KVM never moves a component, so they are the guest's too.
    pub fn of_this_cpu(size: usize) -> Self {
        let mut layout = Layout {
            components: Default::default(),
            mxcsr_mask: mxcsr_mask_of_this_cpu(),
        };
        for (number, slot) in layout.components.iter_mut().enumerate().skip(AVX as usize) {
            let leaf = __cpuid_count(0xd, number as u32);
            let component = Component {
                offset: leaf.ebx as usize,
                size: leaf.eax as usize,
                aligned: leaf.ecx & 2 != 0,
            };
            let user = leaf.ecx & 1 == 0;
            let fits = component
                .offset
                .checked_add(component.size)
                .is_some_and(|end| end <= size);
            if user && component.size != 0 && component.offset >= EXTENDED && fits {
                *slot = Some(component);
            }
        }
        layout
    }

    /// A component of the extended region; `None` for x87 and SSE, and for what is not there.
    pub fn component(&self, number: u32) -> Option<Component> {
        self.components.get(number as usize).copied().flatten()
    }

    /// Bytes of an area that holds every component in the standard format.
    pub fn size(&self) -> usize {
        self.components
            .iter()
            .flatten()
            .map(|c| c.offset + c.size)
            .fold(EXTENDED, usize::max)
    }
}

/// An area for FXSAVE (Intel SDM Vol 2A, FXSAVE).
#[repr(C, align(16))]
struct FxsaveArea([u8; LEGACY_SIZE]);

fn mxcsr_mask_of_this_cpu() -> u32 {
    let mut area = FxsaveArea([0; LEGACY_SIZE]);
    // SAFETY: the area has the size and alignment that FXSAVE demands, and every x86-64 CPU has FXSAVE.
    unsafe { _fxsave64(area.0.as_mut_ptr()) };
    match area.0[MXCSR_MASK..]
        .first_chunk()
        .map_or(0, |field| u32::from_le_bytes(*field))
    {
        0 => MXCSR_MASK_DEFAULT,
        mask => mask,
    }
}

/// The extended state of a vCPU: an XSAVE area in the standard format (Intel SDM Vol 1 §13.4).
///
/// Components that are not in use hold their initial values.
#[derive(Clone, Debug)]
pub struct XsaveImage {
    bytes: Vec<u8>,
    layout: Layout,
}

impl XsaveImage {
    /// An image of the initial state.
    pub fn new(layout: Layout) -> Self {
        let mut image = XsaveImage {
            bytes: vec![0; layout.size()],
            layout,
        };
        image.init_x87_control();
        image.set_mxcsr(MXCSR_RESET);
        image
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All of its bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Which components there are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes of a component of the extended region.
    pub fn component(&self, number: u32) -> Option<&[u8]> {
        let c = self.layout.component(number)?;
        self.bytes.get(c.offset..c.offset + c.size)
    }

    /// Bytes of a component of the extended region.
    pub fn component_mut(&mut self, number: u32) -> Option<&mut [u8]> {
        let c = self.layout.component(number)?;
        self.bytes.get_mut(c.offset..c.offset + c.size)
    }

    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[offset..offset + N]);
        field
    }

    fn set_field(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    /// Components that may differ from their initial values (XINUSE, Vol 1 §13.6). MXCSR counts as SSE.
    pub fn in_use(&self) -> u64 {
        let mxcsr = if self.mxcsr() == MXCSR_RESET { 0 } else { 1 << SSE };
        self.xstate_bv() | mxcsr
    }

    /// XSTATE_BV as it is in the image.
    pub fn xstate_bv(&self) -> u64 {
        u64::from_le_bytes(self.field(XSTATE_BV))
    }

    /// Sets XSTATE_BV.
    pub fn set_xstate_bv(&mut self, components: u64) {
        self.set_field(XSTATE_BV, &components.to_le_bytes());
    }

    /// Notes that a component no longer is in its initial state.
    pub fn mark_in_use(&mut self, component: u32) {
        self.set_xstate_bv(self.xstate_bv() | 1 << component);
    }

    /// x87 status word.
    pub fn fsw(&self) -> u16 {
        u16::from_le_bytes(self.field(2))
    }

    /// Sets the x87 status word.
    pub fn set_fsw(&mut self, value: u16) {
        self.set_field(2, &value.to_le_bytes());
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.field(MXCSR))
    }

    /// Sets MXCSR.
    pub fn set_mxcsr(&mut self, value: u32) {
        self.set_field(MXCSR, &value.to_le_bytes());
    }

    /// The bits of MXCSR that may be set. Hypervisors do not always fill in the field of that name, so the CPU is asked.
    pub fn mxcsr_mask(&self) -> u32 {
        self.layout.mxcsr_mask
    }

    /// Sets the x87 control, status, tag and pointer registers to what FNINIT makes of them; the data registers stay.
    pub fn init_x87_control(&mut self) {
        self.bytes[..MXCSR].fill(0);
        self.set_field(0, &FCW_RESET.to_le_bytes());
    }

    /// Puts one component into its initial state (Vol 1 §13.6). MXCSR is not touched.
    pub fn init(&mut self, component: u32) {
        match component {
            X87 => {
                self.init_x87_control();
                self.bytes[ST..XMM].fill(0);
            }
            SSE => self.bytes[XMM..XMM_END].fill(0),
            _ => {
                if let Some(bytes) = self.component_mut(component) {
                    bytes.fill(0);
                }
            }
        }
    }
}
