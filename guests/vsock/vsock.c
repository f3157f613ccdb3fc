/* Stream sockets between a Linux guest and its host, for the tests of virtio-vsock.
 *
 *   vsock echo PORT         accept one connection and send back what comes, until its end
 *   vsock send CID PORT     connect, send standard input, then print what comes back
 *   vsock refuse CID PORT   succeed when nobody listens there
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int socket_of(void)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

static struct sockaddr_vm address(unsigned int cid, unsigned int port)
{
	struct sockaddr_vm to = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };

	return to;
}

static void write_all(int fd, const char *bytes, ssize_t len)
{
	while (len > 0) {
		ssize_t put = write(fd, bytes, len);

		if (put < 0)
			die("write");
		bytes += put;
		len -= put;
	}
}

static int echo(unsigned int port)
{
	struct sockaddr_vm here = address(VMADDR_CID_ANY, port);
	static char piece[65536];
	int listener = socket_of(), fd;
	ssize_t got;

	if (bind(listener, (void *)&here, sizeof(here)) || listen(listener, 8))
		die("listen");
	puts("listening");
	fflush(stdout);
	fd = accept(listener, NULL, NULL);
	if (fd < 0)
		die("accept");
	while ((got = read(fd, piece, sizeof(piece))) > 0)
		write_all(fd, piece, got);
	if (got < 0)
		die("read");
	close(fd);
	return 0;
}

/* Both ways at once: the other end may answer before it has heard everything. */
static int send_input(unsigned int cid, unsigned int port)
{
	struct sockaddr_vm there = address(cid, port);
	struct pollfd ends[2] = { { .fd = socket_of(), .events = POLLIN }, { .fd = 0, .events = POLLIN } };
	static char piece[65536];
	ssize_t got;

	if (connect(ends[0].fd, (void *)&there, sizeof(there)))
		die("connect");
	while (poll(ends, 2, -1) > 0) {
		if (ends[1].revents) {
			got = read(0, piece, sizeof(piece));
			if (got > 0) {
				write_all(ends[0].fd, piece, got);
			} else {
				shutdown(ends[0].fd, SHUT_WR);
				ends[1].fd = -1;
			}
		}
		if (ends[0].revents) {
			got = read(ends[0].fd, piece, sizeof(piece));
			if (got <= 0)
				break;
			write_all(1, piece, got);
		}
	}
	return got < 0;
}

static int refuse(unsigned int cid, unsigned int port)
{
	struct sockaddr_vm there = address(cid, port);

	if (!connect(socket_of(), (void *)&there, sizeof(there)))
		return 1;
	puts(strerror(errno));
	return errno != ECONNRESET && errno != ECONNREFUSED;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "echo"))
		return echo(atoi(argv[2]));
	if (argc == 4 && !strcmp(argv[1], "send"))
		return send_input(atoi(argv[2]), atoi(argv[3]));
	if (argc == 4 && !strcmp(argv[1], "refuse"))
		return refuse(atoi(argv[2]), atoi(argv[3]));
	fputs("vsock echo PORT | send CID PORT | refuse CID PORT\n", stderr);
	return 2;
}
