# What hako/steps.py has as bytes. It uses no stack: the parent may have the same one.
        .intel_syntax noprefix
        .text
# long clone3(struct clone_args *, size_t, struct step *): the child goes on with the step
clone:  mov     r9, rdx
        mov     eax, 435
        syscall
        test    rax, rax
        jz      1f
        ret
1:      mov     rbx, r9
        jmp     take
# where a program of nothing but this begins, with the steps behind it
start:  lea     rbx, [rip + table]
        jmp     take
# void go(struct step *): this process does, and never returns
go:     mov     rbx, rdi
take:   mov     rax, [rbx]
        mov     rdi, [rbx + 8]
        mov     rsi, [rbx + 16]
        mov     rdx, [rbx + 24]
        mov     r10, [rbx + 32]
        mov     r8, [rbx + 40]
        mov     r9, [rbx + 48]
        syscall
        cmp     rax, -4095
        jae     failed
        mov     rcx, [rbx + 56]         # into
        test    rcx, rcx
        jz      2f
        mov     [rcx], rax
2:      mov     rcx, [rbx + 64]         # zero
        test    rcx, rcx
        jz      3f
        test    rax, rax
        jz      jump
3:      mov     rcx, [rbx + 72]         # until
        test    rcx, rcx
        jz      next
        cmp     rax, rcx
        jne     take
next:   add     rbx, 96
        jmp     take
failed: mov     rdx, [rbx + 88]         # record
        mov     [rdx], rbx
        mov     [rdx + 8], rax
        mov     rcx, [rbx + 80]         # error
jump:   mov     rbx, rcx
        jmp     take
        .balign 8
table:
