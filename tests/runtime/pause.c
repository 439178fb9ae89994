/* The first process of a pod: it waits. */
#include <unistd.h>
int main(void) {
    for (;;) pause();
}
