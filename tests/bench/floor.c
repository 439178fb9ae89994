/* The floor of ADD and DEL: a bare static program that makes the same netlink changes and nothing else.
 *
 *   floor add NETNS HOST_IFNAME ADDRESS NUMBER     floor del HOST_IFNAME
 *
 * The pair is made from inside the pod's namespace with the host end in ours; link up, address, neighbour
 * and two routes inside; link up, neighbour and route outside. Each step waits for its acknowledgement. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char buf[4096];
static struct nlmsghdr *h;
static int seq;

static void die(const char *what) { perror(what); exit(1); }

static int nl(void) {
    int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (s < 0) die("socket");
    return s;
}

static void *msg(int type, int flags, size_t len) {
    memset(buf, 0, sizeof buf);
    h = (struct nlmsghdr *)buf;
    h->nlmsg_len = NLMSG_LENGTH(len);
    h->nlmsg_type = type;
    h->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    h->nlmsg_seq = ++seq;
    return NLMSG_DATA(h);
}

static struct rtattr *attr(int type, const void *data, size_t len) {
    struct rtattr *a = (struct rtattr *)(buf + NLMSG_ALIGN(h->nlmsg_len));
    a->rta_type = type;
    a->rta_len = RTA_LENGTH(len);
    if (len) memcpy(RTA_DATA(a), data, len);
    h->nlmsg_len = NLMSG_ALIGN(h->nlmsg_len) + RTA_ALIGN(a->rta_len);
    return a;
}

static void end(struct rtattr *a) { a->rta_len = buf + h->nlmsg_len - (char *)a; }

static void talk(int s, const char *what) {
    static char in[8192];
    if (send(s, buf, h->nlmsg_len, 0) < 0) die(what);
    if (recv(s, in, sizeof in, 0) < 0) die(what);
    struct nlmsghdr *r = (struct nlmsghdr *)in;
    if (r->nlmsg_type == NLMSG_ERROR) {
        struct nlmsgerr *e = NLMSG_DATA(r);
        if (e->error) { errno = -e->error; die(what); }
    }
}

static void up(int s, int index) {
    struct ifinfomsg *i = msg(RTM_NEWLINK, 0, sizeof *i);
    i->ifi_index = index;
    i->ifi_change = i->ifi_flags = IFF_UP;
    talk(s, "up");
}

static void neigh(int s, int index, in_addr_t a, const unsigned char *mac) {
    struct ndmsg *n = msg(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof *n);
    n->ndm_family = AF_INET;
    n->ndm_ifindex = index;
    n->ndm_state = NUD_PERMANENT;
    attr(NDA_DST, &a, 4);
    attr(NDA_LLADDR, mac, 6);
    talk(s, "neighbour");
}

static void route(int s, int index, in_addr_t dst, in_addr_t gw) {
    struct rtmsg *r = msg(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof *r);
    r->rtm_family = AF_INET;
    r->rtm_table = RT_TABLE_MAIN;
    r->rtm_protocol = RTPROT_STATIC;
    r->rtm_type = RTN_UNICAST;
    if (gw) { r->rtm_scope = RT_SCOPE_UNIVERSE; attr(RTA_GATEWAY, &gw, 4); }
    else { r->rtm_scope = RT_SCOPE_LINK; r->rtm_dst_len = 32; attr(RTA_DST, &dst, 4); }
    attr(RTA_OIF, &index, 4);
    talk(s, "route");
}

int main(int argc, char **argv) {
    int host = nl();
    if (argc == 3 && !strcmp(argv[1], "del")) {
        msg(RTM_DELLINK, 0, sizeof(struct ifinfomsg));
        attr(IFLA_IFNAME, argv[2], strlen(argv[2]) + 1);
        talk(host, "delete");
        return 0;
    }
    if (argc != 6 || strcmp(argv[1], "add")) return 2;
    int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), ns = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (own < 0 || ns < 0) die(argv[2]);
    if (setns(ns, CLONE_NEWNET)) die("setns");
    int pod = nl();
    unsigned n = atoi(argv[5]), mtu = 9001, group = 0x7f000001;
    unsigned char hm[6] = {0x0a, 0xff, 0, 0, n >> 8, n}, pm[6] = {0x0e, 0xff, 0, 0, n >> 8, n};
    in_addr_t address = inet_addr(argv[4]), gateway = inet_addr("169.254.1.1");

    msg(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof(struct ifinfomsg));
    attr(IFLA_IFNAME, "eth0", 5);
    attr(IFLA_ADDRESS, pm, 6);
    attr(IFLA_MTU, &mtu, 4);
    struct rtattr *info = attr(IFLA_LINKINFO, 0, 0);
    attr(IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = attr(IFLA_INFO_DATA, 0, 0), *peer = attr(VETH_INFO_PEER, 0, 0);
    h->nlmsg_len += sizeof(struct ifinfomsg);
    attr(IFLA_IFNAME, argv[3], strlen(argv[3]) + 1);
    attr(IFLA_ADDRESS, hm, 6);
    attr(IFLA_MTU, &mtu, 4);
    attr(IFLA_GROUP, &group, 4);
    attr(IFLA_NET_NS_FD, &own, 4);
    end(peer);
    end(data);
    end(info);
    talk(pod, "create");

    int inside = if_nametoindex("eth0");
    up(pod, inside);
    struct ifaddrmsg *a = msg(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof *a);
    a->ifa_family = AF_INET;
    a->ifa_prefixlen = 32;
    a->ifa_index = inside;
    attr(IFA_LOCAL, &address, 4);
    attr(IFA_ADDRESS, &address, 4);
    talk(pod, "address");
    neigh(pod, inside, gateway, hm);
    route(pod, inside, gateway, 0);
    route(pod, inside, 0, gateway);
    if (setns(own, CLONE_NEWNET)) die("setns back");
    int outside = if_nametoindex(argv[3]);
    up(host, outside);
    neigh(host, outside, address, pm);
    route(host, outside, address, 0);
    return 0;
}
