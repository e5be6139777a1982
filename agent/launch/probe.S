# Boot sector of the accelerator probe (agent/launch/accelerator.py holds its bytes).
# Protected mode, an interrupt and its return, paging, long mode: a host whose KVM is an
# incomplete one stops at one of these. Writes "OK\n" to the first serial port, then halts.
#   as -o probe.o probe.S && ld -Ttext=0x7c00 --oformat=binary -o probe.bin probe.o
        .code16
        .globl _start
_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        lgdtw   gdt_pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpw   $8, $protected

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7c00, %esp
        # Interrupt 0x30, handled by an iret.
        movl    $0x00080000 + (handler - _start) + 0x7c00, 0x5180
        movl    $0x00008e00, 0x5184
        lidt    idt_pointer
        int     $0x30
        # Page tables at 0x1000: the first 2 MiB, identical.
        xorl    %eax, %eax
        movl    $0x1000, %edi
        movl    $0xc00, %ecx
        cld
        rep stosl
        movl    $0x2003, 0x1000
        movl    $0x3003, 0x2000
        movl    $0x83, 0x3000
        movl    $0x1000, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orb     $0x20, %al
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx
        rdmsr
        orw     $0x100, %ax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
        ljmpl   $24, $long

handler: iret

        .code64
long:   cpuid
        rdtsc
        movw    $0x3f8, %dx
        movb    $'O', %al
        outb    %al, %dx
        movb    $'K', %al
        outb    %al, %dx
        movb    $'\n', %al
        outb    %al, %dx
1:      hlt
        jmp     1b

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9a000000ffff      # 8: 32-bit code
        .quad   0x00cf92000000ffff      # 16: data
        .quad   0x00af9a000000ffff      # 24: 64-bit code
gdt_pointer:
        .word   31
        .long   gdt
idt_pointer:
        .word   0x7ff
        .long   0x5000
        .org    510
        .word   0xaa55
