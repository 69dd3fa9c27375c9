/* tracer RECORD PLACE N NUMBER HOW ERRNO FIRST MARK SECONDS ARGV... - run ARGV and let one of its system calls go wrong
 *
 * PLACE is a process: 0 is the one that is started, 0.1 its second child, 0.1.0
 * the first child of that. The N-th system call of it, counted from the first
 * call of number MARK in process FIRST on and up to its exec of PROG, or, where things
 * came in another order, the first one behind that has this NUMBER, is where
 *   kill     the process is killed, before the call is made
 *   fail     the call is not made, and fails with ERRNO; brk as it does, which tells of no error
 *   after    the call is made, and fails with ERRNO all the same
 *   nothing  nothing happens; PLACE, N and NUMBER mean nothing
 * RECORD becomes a file of lines: "call PLACE N NUMBER ARGUMENT [TEXT]" for each
 * call counted (only with HOW nothing), "hit NUMBER ARGUMENT" when it happened, "over"
 * before that if process 0 had ended or was ending, "exit STATUS" and "signal N" for the
 * end of process 0, "exec PLACE" for each process that becomes PROG, which is whatever
 * is not called INIT, "left PLACE COMM" for each one that is there SECONDS after the end
 * of process 0, when all are killed, "lag MILLISECONDS" from that to the end of the last.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/ptrace.h>

/* What an init becomes on its way: it is the same process, and hako's. */
#define INIT "/memfd:hako-init"
#define SILENCE 50 /* milliseconds */
#define PF_EXITING 4 /* of the flags in /proc/PID/stat, see proc_pid_stat(5) */

struct process {
	pid_t pid;
	char place[128];
	int children, calls, known, stopped, ended, becomes_prog, entered;
	unsigned long asked; /* of a brk that is refused: its argument; brk(0) never is */
};

static struct process processes[4096];
static int count, started, forced, hit;
static FILE *record;
static const char *target, *how, *first_place;
static long nth, wanted, error_number, mark;
static volatile sig_atomic_t late;

static void on_alarm(int number) { late = 1; }

static struct process *find(pid_t pid)
{
	for (int i = count - 1; i >= 0; i--)
		if (processes[i].pid == pid && !processes[i].ended)
			return &processes[i];
	if (count == sizeof processes / sizeof *processes) {
		fputs("tracer: too many processes\n", stderr);
		exit(99);
	}
	processes[count].pid = pid;
	return &processes[count++];
}

/* The registers of system calls, by machine. */
static void set_number(pid_t pid, long number)
{
#ifdef __x86_64__
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, orig_rax), number);
#else
	int nr = number;
	struct iovec iov = { &nr, sizeof nr };
	ptrace(PTRACE_SETREGSET, pid, NT_ARM_SYSTEM_CALL, &iov);
#endif
}

static void set_result(pid_t pid, long result)
{
#ifdef __x86_64__
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rax), result);
#else
	struct user_regs_struct regs;
	struct iovec iov = { &regs, sizeof regs };
	ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &iov);
	regs.regs[0] = result;
	ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &iov);
#endif
}

static void set_first_argument(pid_t pid, unsigned long argument)
{
#ifdef __x86_64__
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rdi), argument);
#else
	set_result(pid, argument); /* the same register */
#endif
}

/* The text at ADDRESS in process PID as one word; "" if there is none that can be printed. */
static void text_at(pid_t pid, unsigned long address, char *text, size_t size)
{
	struct iovec local = { text, size - 1 }, remote = { (void *)address, size - 1 };
	ssize_t got = -1;
	if (address > 4096)
		while (remote.iov_len > 8 && (got = process_vm_readv(pid, &local, 1, &remote, 1, 0)) < 0)
			remote.iov_len /= 2;
	text[got > 0 ? got : 0] = 0;
	for (char *at = text; *at; at++)
		if (*at <= ' ' || *at > '~') {
			*text = 0;
			return;
		}
}

/* Whether process 0 has ended, or is about to: nothing is seen to by it any more. */
static int is_over(void)
{
	char path[64], text[512];
	unsigned flags = PF_EXITING;
	snprintf(path, sizeof path, "/proc/%d/stat", processes[0].pid);
	FILE *file = fopen(path, "r");
	if (!file)
		return 1;
	text[fread(text, 1, sizeof text - 1, file)] = 0;
	fclose(file);
	char *behind_name = strrchr(text, ')');
	if (behind_name)
		sscanf(behind_name, ") %*c %*d %*d %*d %*d %*d %u", &flags);
	return flags & PF_EXITING;
}

static void enter_call(struct process *process, struct ptrace_syscall_info *info)
{
	long number = info->entry.nr;
	process->entered = 0;
	if (!started && number == mark && !strcmp(process->place, first_place))
		started = 1;
	if (!started || process->becomes_prog)
		return;
	int n = process->calls++;
	if (!strcmp(how, "nothing")) {
		char text[200];
		text_at(process->pid, info->entry.args[0], text, sizeof text);
		if (!*text)
			text_at(process->pid, info->entry.args[1], text, sizeof text);
		fprintf(record, "call %s %d %ld %llu %s\n", process->place, n, number,
			(unsigned long long)info->entry.args[0], text);
		return;
	}
	if (hit || n < nth || number != wanted || strcmp(process->place, target))
		return;
	hit = 1;
	if (is_over())
		fputs("over\n", record);
	fprintf(record, "hit %ld %llu\n", number, (unsigned long long)info->entry.args[0]);
	if (!strcmp(how, "kill")) {
		kill(process->pid, SIGKILL);
		return;
	}
	if (!strcmp(how, "fail") && number == SYS_brk) {
		/* Refused, it tells where the break is, as brk(0) does. The C library would take -ERRNO for a place. */
		process->asked = info->entry.args[0];
		set_first_argument(process->pid, 0);
		return;
	}
	process->entered = 1;
	if (!strcmp(how, "fail"))
		set_number(process->pid, -1);
}

static void leave_call(struct process *process)
{
	if (process->entered)
		set_result(process->pid, -error_number);
#ifdef __x86_64__
	if (process->asked)
		set_first_argument(process->pid, process->asked); /* the kernel leaves it as it was */
#endif
	process->entered = 0;
	process->asked = 0;
}

static int becomes_init(pid_t pid)
{
	char path[64], target[64];
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	return readlink(path, target, sizeof target) >= (ssize_t)strlen(INIT) && !strncmp(target, INIT, strlen(INIT));
}

/* Each call that is stopped at takes its time: only those are that are listed, or may be the one that goes wrong. */
static int is_watched(struct process *process)
{
	if (process->becomes_prog)
		return 0;
	if (process->entered || process->asked)
		return 1;
	if (!started)
		return !strcmp(process->place, first_place);
	return !hit && (!strcmp(how, "nothing") || !strcmp(process->place, target));
}

static void go_on(struct process *process, int number)
{
	process->stopped = 0;
	ptrace(is_watched(process) ? PTRACE_SYSCALL : PTRACE_CONT, process->pid, 0, number);
}

static void born(struct process *parent, pid_t pid)
{
	struct process *child = find(pid);
	if (snprintf(child->place, sizeof child->place, "%s.%d", parent->place, parent->children++) >= (int)sizeof child->place)
		exit(99);
	child->becomes_prog |= parent->becomes_prog;
	child->known = 1;
	if (child->stopped)
		go_on(child, 0);
}

static void stopped(struct process *process, int status)
{
	int number = WSTOPSIG(status), event = status >> 16;
	if (number == (SIGTRAP | 0x80)) {
		struct ptrace_syscall_info info = { 0 };
		ptrace(PTRACE_GET_SYSCALL_INFO, process->pid, sizeof info, &info);
		if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
			enter_call(process, &info);
		else
			leave_call(process);
		go_on(process, 0);
	} else if (event == PTRACE_EVENT_STOP) {
		process->stopped = 1;
		if (number == SIGSTOP || number == SIGTSTP || number == SIGTTIN || number == SIGTTOU)
			ptrace(PTRACE_LISTEN, process->pid, 0, 0);
		else if (process->known)
			go_on(process, 0);
	} else if (event == PTRACE_EVENT_EXEC) {
		if (started && !becomes_init(process->pid)) {
			process->becomes_prog = 1;
			fprintf(record, "exec %s\n", process->place);
		}
		go_on(process, 0);
	} else if (event) {
		unsigned long pid;
		ptrace(PTRACE_GETEVENTMSG, process->pid, 0, &pid);
		born(process, pid);
		go_on(process, 0);
	} else if (number == SIGSEGV && becomes_init(process->pid)) {
		kill(process->pid, SIGKILL); /* PID 1 dies of its own faults, unless it is traced */
		go_on(process, 0);
	} else {
		go_on(process, number);
	}
}

/* The first that has stopped at its birth, and nobody has told of yet. */
static struct process *newborn(void)
{
	for (int i = 0; i < count; i++)
		if (processes[i].stopped && !processes[i].known && !processes[i].ended)
			return &processes[i];
	return 0;
}

/* Who is killed in a clone does not tell of the child: let it go when nothing has happened for SILENCE. */
static void adopt(void)
{
	struct process *child = newborn();
	for (int i = count - 1; child && i >= 0; i--)
		if (processes[i].ended) {
			born(&processes[i], child->pid);
			return;
		}
}

/* The next that happened, as waitpid() has it. */
static pid_t next_event(int *status)
{
	struct timespec millisecond = { 0, 1000000 };
	for (int silence = 0; newborn(); silence++) {
		pid_t pid = waitpid(-1, status, __WALL | WNOHANG);
		if (pid)
			return pid;
		if (silence == SILENCE) {
			adopt();
			silence = 0;
		}
		if (nanosleep(&millisecond, 0) < 0 && late)
			return -1;
	}
	return waitpid(-1, status, __WALL);
}

static int alive(void)
{
	int n = 0;
	for (int i = 0; i < count; i++)
		n += !processes[i].ended;
	return n;
}

static void end_all(void)
{
	for (int i = 0; i < count; i++)
		if (!processes[i].ended) {
			char path[64], comm[64] = "?\n";
			snprintf(path, sizeof path, "/proc/%d/comm", processes[i].pid);
			FILE *file = fopen(path, "r");
			if (file) {
				if (!fgets(comm, sizeof comm, file))
					strcpy(comm, "?\n");
				fclose(file);
			}
			fprintf(record, "left %s %s", processes[i].place, comm);
			kill(processes[i].pid, SIGKILL);
		}
	forced = 1;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	if (argc < 11)
		return 99;
	record = fopen(argv[1], "we");
	target = argv[2], nth = atol(argv[3]), wanted = atol(argv[4]), how = argv[5];
	error_number = atol(argv[6]), first_place = argv[7], mark = atol(argv[8]);
	int seconds = atoi(argv[9]), status, ready[2];
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (!record || pipe(ready))
		return 99;
	pid_t first = fork();
	if (!first) {
		char byte;
		close(ready[1]);
		if (read(ready[0], &byte, 1) != 1)
			_exit(99);
		close(ready[0]);
		fclose(record);
		prctl(PR_SET_CHILD_SUBREAPER, 0);
		execvp(argv[10], argv + 10);
		_exit(99);
	}
	struct process *process = find(first);
	strcpy(process->place, "0");
	process->known = 1;
	if (ptrace(PTRACE_SEIZE, first, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
		   PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL)) {
		perror("tracer: PTRACE_SEIZE");
		kill(first, SIGKILL);
		return 99;
	}
	ptrace(PTRACE_INTERRUPT, first, 0, 0); /* it may have none of its calls traced before it stops once */
	if (write(ready[1], "x", 1) != 1)
		return 99;
	close(ready[0]), close(ready[1]);
	/* The caller's pipes are ARGV's: who reads to the end is to wait for that. */
	for (int fd = 0; fd < 2; fd++)
		close(fd);
	signal(SIGPIPE, SIG_IGN);
	struct sigaction action = { .sa_handler = on_alarm };
	sigaction(SIGALRM, &action, 0);
	alarm(seconds * 4);
	double ended = 0;
	while (alive()) {
		pid_t pid = next_event(&status);
		if (late && !forced) {
			end_all();
			alarm(seconds);
		}
		if (pid < 0 && errno == EINTR)
			continue;
		if (pid < 0)
			break;
		int known = 0;
		for (int i = 0; i < count; i++)
			known |= processes[i].pid == pid && !processes[i].ended;
		if (!known && !WIFSTOPPED(status))
			continue; /* an orphan that was seen to end already */
		process = find(pid);
		if (WIFSTOPPED(status)) {
			stopped(process, status);
			continue;
		}
		process->ended = 1;
		if (pid == first) {
			ended = now();
			alarm(seconds);
			if (WIFEXITED(status))
				fprintf(record, "exit %d\n", WEXITSTATUS(status));
			else
				fprintf(record, "signal %d\n", WTERMSIG(status));
		}
	}
	fprintf(record, "lag %d\n", ended ? (int)((now() - ended) * 1000) : -1);
	return fclose(record) ? 99 : 0;
}
