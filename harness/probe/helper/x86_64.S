# Takes batches of system calls from the fifo "request" and answers into "answer"; see program.py
# for the layout. Position-independent, no stack, no library.
	.set IN, 0x20000000
	.set OUT, 0x21000000

	.globl _start
_start:
	mov $38, %eax			# setitimer: an orphan ends by itself
	xor %edi, %edi
	lea idle(%rip), %rsi
	xor %edx, %edx
	syscall
	mov $257, %eax			# openat
	mov $-100, %rdi
	lea request(%rip), %rsi
	xor %edx, %edx
	syscall
	test %rax, %rax
	js quit
	mov %rax, %r12
	mov $IN, %ebx
receive:
	xor %eax, %eax			# read
	mov %r12, %rdi
	mov %rbx, %rsi
	mov $OUT, %edx
	sub %ebx, %edx
	syscall
	test %rax, %rax
	jle received
	add %rax, %rbx
	jmp receive
received:
	mov $3, %eax			# close
	mov %r12, %rdi
	syscall
	mov $IN, %ebx
	mov (%rbx), %r12		# records left
	add $8, %rbx
	mov $OUT, %r13d
record:
	test %r12, %r12
	jz answered
	mov 8(%rbx), %r14
	xor %ecx, %ecx
argument:
	shr %r14
	jnc ready
	mov 16(%rbx,%rcx,8), %rax
	mov (%rax), %rax
	mov %rax, 16(%rbx,%rcx,8)
ready:
	inc %ecx
	cmp $6, %ecx
	jne argument
	mov (%rbx), %rax
	mov 16(%rbx), %rdi
	mov 24(%rbx), %rsi
	mov 32(%rbx), %rdx
	mov 40(%rbx), %r10
	mov 48(%rbx), %r8
	mov 56(%rbx), %r9
	syscall
	mov %rax, 80(%rbx)
	mov %rax, (%r13)
	add $8, %r13
	test %rax, %rax
	js next
	mov 64(%rbx), %rsi
	test %rsi, %rsi
	jz next
	mov 72(%rbx), %rcx
	test %rcx, %rcx
	cmovz %rax, %rcx
	mov %r13, %rdi
	rep movsb
	mov %rdi, %r13
next:
	add $88, %rbx
	dec %r12
	jmp record
answered:
	mov $257, %eax			# openat
	mov $-100, %rdi
	lea answer(%rip), %rsi
	mov $1, %edx
	syscall
	test %rax, %rax
	js quit
	mov %rax, %r12
	mov $OUT, %ebx
send:
	mov %r13, %rdx
	sub %rbx, %rdx
	jz sent
	mov $1, %eax			# write
	mov %r12, %rdi
	mov %rbx, %rsi
	syscall
	test %rax, %rax
	js quit
	add %rax, %rbx
	jmp send
sent:
	mov $3, %eax			# close
	mov %r12, %rdi
	syscall
	jmp _start
quit:
	mov $60, %eax			# exit
	xor %edi, %edi
	syscall
request:
	.asciz "request"
answer:
	.asciz "answer"
	.balign 8, 0
idle:
	.quad 0, 0, 1800, 0
