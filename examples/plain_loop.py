"""A two-lane AlexNet in a plain loop: torchrun --nproc_per_node 2 examples/plain_loop.py."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

import lanes


def main(steps: int = 20, size: int = 64) -> None:
    torch.manual_seed(0)  # the same initial weights on every process
    net = lanes.models.SmallAlexNet(num_classes=10, lanes=2)
    mesh = lanes.init_mesh()  # every process is a lane device; lane_devices=2 on 4 processes makes 2 replicas
    device = torch.device(mesh.device_type)
    plan = lanes.plan(net, torch.empty(2, 3, size, size), lane_devices=mesh["lane"].size())
    lanes.place(net, plan, mesh)
    if dist.get_rank() == 0:
        print(plan)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    lanes.seed_replica(mesh, 0)  # from here on lane devices of a replica draw alike, replicas differ
    images, labels = torch.randn(32, 3, size, size, device=device), torch.arange(32, device=device) % 10
    for step in range(steps):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"step {step:2}  loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
