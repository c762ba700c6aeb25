//! Payloads written in Rust: a list of accesses to ports and memory that one small guest program carries out.
//!
//! What is read is printed as 8 bytes each, for [`crate::Ended::numbers`]; the end of the list powers off.

use crate::payload;
use crate::payload::LOAD_ADDRESS;

/// Where [`Script::code_and`] puts data: 2 MiB.
pub const DATA: u64 = 0x20_0000;
/// Where the guest program keeps the [`Entry`] registers: in low RAM, apart from what the VMM put there.
const REPORT: u64 = 0x4_0000;
/// Number of registers in the report.
const REGISTERS: u64 = 13;

payload! {
    /// Saves the registers it was entered with, maps 4 to 6 GiB to themselves and then interprets the script
    /// that follows it: records of three 8-byte numbers, an operation and two operands in rdi and rsi.
    interpreter,
    "mov [0x40000], rsi",
    "mov [0x40008], rsp",
    "pushfq",
    "pop rax",
    "mov [0x40010], rax",
    "mov rax, cr0",
    "mov [0x40018], rax",
    "mov rax, cr3",
    "mov [0x40020], rax",
    "mov rax, cr4",
    "mov [0x40028], rax",
    "mov ecx, 0xc0000080", // IA32_EFER
    "rdmsr",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [0x40030], rax",
    "xor eax, eax",
    "mov ax, cs",
    "mov [0x40038], rax",
    "mov ax, ds",
    "mov [0x40040], rax",
    "mov ax, es",
    "mov [0x40048], rax",
    "mov ax, ss",
    "mov [0x40050], rax",
    "sgdt [0x40060]",
    "mov rax, [0x40062]",
    "mov [0x40058], rax", // base of the GDT
    "movzx eax, word ptr [0x40060]",
    "mov [0x40060], rax", // its limit

    // Entries 4 and 5 of the page directory pointer table: two directories of large pages, at 0x42000.
    "mov rax, cr3",
    "and rax, -4096",
    "mov rax, [rax]",
    "and rax, -4096",
    "mov qword ptr [rax + 32], 0x42003",
    "mov qword ptr [rax + 40], 0x43003",
    "mov edi, 0x42000",
    "movabs rax, 0x100000083", // 4 GiB, present, writable, large
    "mov ecx, 1024",
    "2: mov [rdi], rax",
    "add rdi, 8",
    "add rax, 0x200000",
    "dec ecx",
    "jnz 2b",

    "lea rbx, [rip + posada_payload_interpreter_end]",
    "jmp 3f",
    "2: mov [0x41000], rax", // prints rax
    "mov esi, 0x41000",
    "mov ecx, 8",
    "mov edx, 0x3f8",
    "cld",
    "rep outsb",
    "3: mov eax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "add rbx, 24",
    "mov edx, edi",
    "shl eax, 6", // operation n is at 64 * n from the first
    "lea rcx, [rip + 4f]",
    "add rcx, rax",
    "xor eax, eax",
    "jmp rcx",

    ".balign 64", "4: power_off", "5: jmp 5b",
    ".balign 64", "mov eax, esi", "out dx, al", "jmp 3b",
    ".balign 64", "mov eax, esi", "out dx, ax", "jmp 3b",
    ".balign 64", "mov eax, esi", "out dx, eax", "jmp 3b",
    ".balign 64", "in al, dx", "jmp 2b",
    ".balign 64", "in ax, dx", "jmp 2b",
    ".balign 64", "in eax, dx", "jmp 2b",
    ".balign 64", "mov eax, esi", "mov [rdi], al", "jmp 3b",
    ".balign 64", "mov eax, esi", "mov [rdi], ax", "jmp 3b",
    ".balign 64", "mov [rdi], esi", "jmp 3b",
    ".balign 64", "mov [rdi], rsi", "jmp 3b",
    ".balign 64", "mov al, [rdi]", "jmp 2b",
    ".balign 64", "mov ax, [rdi]", "jmp 2b",
    ".balign 64", "mov eax, [rdi]", "jmp 2b",
    ".balign 64", "mov rax, [rdi]", "jmp 2b",
    // 15, 16: print rsi bytes from the address rdi, from the address at the address rdi.
    ".balign 64", "mov rcx, rsi", "mov rsi, rdi", "mov edx, 0x3f8", "cld", "rep outsb", "jmp 3b",
    ".balign 64", "mov rcx, rsi", "mov rsi, [rdi]", "mov edx, 0x3f8", "cld", "rep outsb", "jmp 3b",
    // 17: print rsi words of 16 bits from the address rdi.
    ".balign 64", "mov rcx, rsi", "mov rsi, rdi", "mov edx, 0x3f8", "cld", "rep outsw", "jmp 3b",
    // 18: read rsi times from the port rdi and print that.
    ".balign 64", "mov rcx, rsi", "mov edi, 0x41000", "cld", "rep insb",
    "mov rcx, rsi", "mov esi, 0x41000", "mov edx, 0x3f8", "rep outsb", "jmp 3b",
    // 19: print what comes in on the serial port until the byte rdi comes. Data terminal ready and request to
    // send, then the receive interrupt, tell the other side that somebody listens (16550D data sheet, § 8).
    ".balign 64", "mov edx, 0x3fc", "mov al, 3", "out dx, al", "mov edx, 0x3f9", "mov al, 1", "out dx, al",
    "5: mov edx, 0x3fd", "in al, dx", "test al, 1", "jz 5b",
    "mov edx, 0x3f8", "in al, dx", "cmp al, dil", "je 3b", "out dx, al", "jmp 5b",
    // 20: go on at the address rdi. 21: spin. 22: halt for good. 23: triple fault.
    ".balign 64", "jmp rdi",
    ".balign 64", "5: jmp 5b",
    ".balign 64", "cli", "5: hlt", "jmp 5b",
    ".balign 64", "push 0", "push 0", "lidt [rsp]", "ud2",
}

/// How wide an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Long,
}

impl Width {
    /// All widths that ports have.
    pub const ALL: [Self; 3] = [Self::Byte, Self::Word, Self::Long];
}

/// A list of accesses, to be run by `Guest::payload(&script.code())`.
#[derive(Clone, Default)]
pub struct Script(Vec<[u64; 3]>);

impl Script {
    /// Does nothing but power off.
    pub fn new() -> Self {
        Self::default()
    }

    fn then(mut self, operation: u64, a: u64, b: u64) -> Self {
        self.0.push([operation, a, b]);
        self
    }

    /// Writes to a port.
    pub fn port_write(self, width: Width, port: u16, value: u32) -> Self {
        self.then(1 + width as u64, port.into(), value.into())
    }

    /// Reads from a port and prints that.
    pub fn port_read(self, width: Width, port: u16) -> Self {
        self.then(4 + width as u64, port.into(), 0)
    }

    /// Writes 1, 2, 4 or 8 bytes to memory.
    pub fn store(self, bytes: u32, address: u64, value: u64) -> Self {
        self.then(7 + u64::from(bytes.ilog2()), address, value)
    }

    /// Reads 1, 2, 4 or 8 bytes from memory and prints that.
    pub fn load(self, bytes: u32, address: u64) -> Self {
        self.then(11 + u64::from(bytes.ilog2()), address, 0)
    }

    /// Prints memory, by `rep outsb`.
    pub fn print(self, address: u64, bytes: u64) -> Self {
        self.then(15, address, bytes)
    }

    /// Prints the memory that the 8 bytes at `pointer` point to.
    pub fn print_at(self, pointer: u64, bytes: u64) -> Self {
        self.then(16, pointer, bytes)
    }

    /// Writes memory to the console in words of 16 bits, by `rep outsw`.
    pub fn print_words(self, address: u64, words: u64) -> Self {
        self.then(17, address, words)
    }

    /// Reads a port several times (at most 4096), by `rep insb`, and prints that.
    pub fn port_read_string(self, port: u16, times: u64) -> Self {
        self.then(18, port.into(), times)
    }

    /// Prints what comes in on the serial port until `end` comes.
    pub fn echo_until(self, end: u8) -> Self {
        self.then(19, end.into(), 0)
    }

    /// Prints a text.
    pub fn say(self, text: &str) -> Self {
        text.bytes().fold(self, |script, byte| {
            script.port_write(Width::Byte, 0x3f8, byte.into())
        })
    }

    /// Goes on at this address.
    pub fn jump(self, address: u64) -> Self {
        self.then(20, address, 0)
    }

    /// Runs in a circle.
    pub fn spin(self) -> Self {
        self.then(21, 0, 0)
    }

    /// Halts with interrupts off.
    pub fn halt(self) -> Self {
        self.then(22, 0, 0)
    }

    /// Faults without a handler, and without one for that.
    pub fn triple_fault(self) -> Self {
        self.then(23, 0, 0)
    }

    /// Prints the registers that the guest was entered with, for [`Entry::from_numbers`].
    pub fn print_entry(self) -> Self {
        self.print(REPORT, REGISTERS * 8)
    }

    /// Prints part of the zero page, which RSI pointed to.
    pub fn print_zero_page(self) -> Self {
        self.print_at(REPORT, 4096)
    }

    /// The guest program: the interpreter, the script and a power-off.
    pub fn code(&self) -> Vec<u8> {
        self.code_and(&[])
    }

    /// The guest program and data at [`DATA`].
    pub fn code_and(&self, data: &[u8]) -> Vec<u8> {
        let mut code = interpreter().to_vec();
        let power_off = [0; 3];
        for number in self.0.iter().chain([&power_off]).flatten() {
            code.extend(number.to_le_bytes());
        }
        if !data.is_empty() {
            let room = (DATA - LOAD_ADDRESS) as usize;
            assert!(code.len() <= room, "the script reaches into its data");
            code.resize(room, 0);
            code.extend(data);
        }
        code
    }
}

/// The registers that a guest was entered with.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is what the Intel SDM calls it")]
pub struct Entry {
    pub rsi: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u64,
    pub ds: u64,
    pub es: u64,
    pub ss: u64,
    pub gdt_base: u64,
    pub gdt_limit: u64,
}

impl Entry {
    /// From what [`Script::print_entry`] printed.
    ///
    /// # Panics
    /// If that is not all of it.
    pub fn from_numbers(numbers: &[u64]) -> Self {
        let Ok(
            [
                rsi,
                rsp,
                rflags,
                cr0,
                cr3,
                cr4,
                efer,
                cs,
                ds,
                es,
                ss,
                gdt_base,
                gdt_limit,
            ],
        ) = <[u64; REGISTERS as usize]>::try_from(numbers)
        else {
            panic!("{} registers instead of {REGISTERS}", numbers.len());
        };
        Self {
            rsi,
            rsp,
            rflags,
            cr0,
            cr3,
            cr4,
            efer,
            cs,
            ds,
            es,
            ss,
            gdt_base,
            gdt_limit,
        }
    }
}
