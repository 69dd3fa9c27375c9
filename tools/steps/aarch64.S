// What hako/steps.py has as bytes. It uses no stack: the parent may have the same one.
        .text
// long clone3(struct clone_args *, size_t, struct step *): the child goes on with the step
clone:  mov     x9, x2
        mov     x8, #435
        svc     #0
        cbz     x0, 1f
        ret
1:      mov     x19, x9
        b       take
// where a program of nothing but this begins, with the steps behind it
start:  adr     x19, table
        b       take
// void go(struct step *): this process does, and never returns
go:     mov     x19, x0
take:   ldr     x8, [x19]
        ldp     x0, x1, [x19, #8]
        ldp     x2, x3, [x19, #24]
        ldp     x4, x5, [x19, #40]
        svc     #0
        cmn     x0, #4095
        b.cs    failed
        ldr     x9, [x19, #56]          // into
        cbz     x9, 2f
        str     x0, [x9]
2:      ldr     x9, [x19, #64]          // zero
        cbz     x9, 3f
        cbz     x0, jump
3:      ldr     x9, [x19, #72]          // until
        cbz     x9, next
        cmp     x0, x9
        b.ne    take
next:   add     x19, x19, #96
        b       take
failed: ldr     x10, [x19, #88]         // record
        stp     x19, x0, [x10]
        ldr     x9, [x19, #80]          // error
jump:   mov     x19, x9
        b       take
        .balign 8
table:
